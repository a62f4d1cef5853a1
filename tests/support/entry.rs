//! Values of entries in etcd's own format.

use discovery_core::{Error, Instance, InstanceId};
use discovery_etcd::{EtcdNaming, Layout};

/// Returns the value of an instance.
pub fn encode(instance: &Instance) -> Vec<u8> {
    let service = "any".parse().expect("a valid name");
    EtcdNaming::default().write(&service, instance, 0).value
}

/// Reads the value of an instance.
pub fn decode(id: &InstanceId, value: &[u8]) -> Result<Instance, Error> {
    let read = EtcdNaming::default().read(id.as_str(), value)?;
    read[0].instance().cloned().map_err(Clone::clone)
}
