//! Many services of a few instances each, put into etcd by a raw client without a lease.

use etcd_client::{Client, Txn, TxnOp};

use crate::Failure;

/// Returns the name of a service.
#[must_use]
pub fn service(number: usize) -> String {
    format!("orders-{number}")
}

/// Returns the prefix of a service's keys.
#[must_use]
pub fn range(number: usize) -> String {
    format!("{}/", service(number))
}

/// Returns the address of an instance, which is its id as well.
#[must_use]
pub fn address(number: usize, instance: usize) -> String {
    format!("10.{instance}.{}.{}:50051", number >> 8, number & 255)
}

/// Returns the key of an instance.
#[must_use]
pub fn key(number: usize, instance: usize) -> String {
    format!("{}{}", range(number), address(number, instance))
}

/// Returns the value of an instance, as etcd's own Go client writes it.
#[must_use]
pub fn value(number: usize, instance: usize) -> String {
    format!(r#"{{"Op":0,"Addr":"{}","Metadata":null}}"#, address(number, instance))
}

/// Puts [`INSTANCES`] instances of each of the first `services` services.
///
/// # Errors
///
/// If etcd does not answer or refuses.
pub async fn put(members: &[String], services: usize) -> Result<(), Failure> {
    let client = Client::connect(members, None).await?;
    let all = (0..services).flat_map(|number| (0..INSTANCES).map(move |instance| (number, instance)));
    let puts: Vec<TxnOp> =
        all.map(|(number, instance)| TxnOp::put(key(number, instance), value(number, instance), None)).collect();
    for puts in puts.chunks(AT_ONCE) {
        client.kv_client().txn(Txn::new().and_then(puts)).await?;
    }
    Ok(())
}

/// The number of instances per service.
pub const INSTANCES: usize = 3;
/// The most writes that etcd takes in one transaction.
const AT_ONCE: usize = 128;
