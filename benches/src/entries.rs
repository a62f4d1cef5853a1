//! Many services of a few instances each, put into etcd by a raw client and without a lease.

use etcd_client::{Client, Txn, TxnOp};

use crate::Failure;

/// The name of a service.
#[must_use]
pub fn service(number: usize) -> String {
    format!("orders-{number}")
}

/// The keys of a service begin with this.
#[must_use]
pub fn range(number: usize) -> String {
    format!("{}/", service(number))
}

/// Where an instance of a service is reached, which is its id as well.
#[must_use]
pub fn address(number: usize, instance: usize) -> String {
    format!("10.{instance}.{}.{}:50051", number >> 8, number & 255)
}

/// The key of an instance.
#[must_use]
pub fn key(number: usize, instance: usize) -> String {
    format!("{}{}", range(number), address(number, instance))
}

/// Its value, as etcd's own Go client writes it.
#[must_use]
pub fn value(number: usize, instance: usize) -> String {
    format!(r#"{{"Op":0,"Addr":"{}","Metadata":null}}"#, address(number, instance))
}

/// Puts [`INSTANCES`] of each of the first so many services.
///
/// # Errors
///
/// Where etcd does not answer, or refuses.
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

/// What each service has.
pub const INSTANCES: usize = 3;
/// The most that etcd takes in one step.
const AT_ONCE: usize = 128;
