//! The registering half of the harness's own registry.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use discovery_core::{
    Claim, Error, ErrorKind, Instance, Registration, ServiceName, Status,
    backend::{RegistrationBackend, StatusWriter},
};
use etcd_client::{Client, Compare, CompareOp, PutOptions, Txn, TxnOp};
use tokio::{
    sync::{mpsc, oneshot},
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::{
    Bug,
    source::{PATIENCE, failed, silent},
};
use crate::{
    history::{PREFIX, connect},
    oracle::{DEADLINE, TTL},
};

/// Registers each instance under its own lease and maintains it several times a second.
pub(super) struct CopyRegistry {
    pub(super) member: String,
    pub(super) bug: Option<Bug>,
}

type Reply = oneshot::Sender<Result<(), Error>>;

enum Order {
    Release(Option<Reply>),
    Update(Vec<u8>, Reply),
}

#[derive(Debug)]
struct Hold(mpsc::UnboundedSender<Order>);

impl CopyRegistry {
    pub(super) async fn register(
        &self,
        service: &ServiceName,
        instance: Instance,
        claim: Claim,
    ) -> Result<Registration, Error> {
        let client = within(connect(&self.member)).await?;
        let value = support::entry::encode(&instance);
        let key = format!("{PREFIX}{service}/{}", instance.id());
        let status = StatusWriter::new(Status::registered());
        let (orders, ordered) = mpsc::unbounded_channel();
        let mut keeper =
            Keeper { client, key, value, lease: 0, status: status.clone(), orders: ordered, bug: self.bug };
        keeper.lease = within(keeper.client.lease_grant(TTL.as_secs().cast_signed(), None)).await?.id();
        let absent = Compare::create_revision(keeper.key.clone(), CompareOp::Equal, 0);
        let guard = if claim == Claim::IfAbsent { vec![absent] } else { Vec::new() };
        if !keeper.put(guard).await? {
            let _ = within(keeper.client.lease_revoke(keeper.lease)).await;
            return Err(Error::new(ErrorKind::Conflict, "another owner's entry lives"));
        }
        tokio::spawn(keeper.run());
        Ok(Registration::new(service.clone(), Arc::new(instance), &status, Hold(orders)))
    }
}

/// The task of one registration.
struct Keeper {
    client: Client,
    key: String,
    value: Vec<u8>,
    lease: i64,
    status: StatusWriter,
    orders: mpsc::UnboundedReceiver<Order>,
    bug: Option<Bug>,
}

impl Keeper {
    async fn run(mut self) {
        let mut confirmed = Instant::now();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                order = self.orders.recv() => match order {
                    Some(Order::Update(value, reply)) => {
                        self.value = value;
                        let _ = reply.send(self.update().await);
                    }
                    Some(Order::Release(reply)) => {
                        let released = self.release().await;
                        let _ = reply.map(|reply| reply.send(released));
                        break;
                    }
                    None => break,
                },
                _ = ticks.tick() => {
                    if self.status.current().is_final() {
                        continue;
                    }
                    match self.look_after().await {
                        Ok(()) => confirmed = Instant::now(),
                        Err(error) if confirmed.elapsed() > TTL => self.status.set(Status::lost(error)),
                        Err(_) => {}
                    }
                }
            }
        }
        while self.bug == Some(Bug::RenewedForEver) {
            let _ = within(self.client.lease_keep_alive(self.lease)).await;
            sleep(TICK).await;
        }
    }

    /// Renews the lease and restores the entry if it is missing.
    async fn look_after(&mut self) -> Result<(), Error> {
        let former = self.lease;
        let renewed = within(self.client.lease_keep_alive(self.lease)).await;
        if let Err(error) = renewed {
            let left = within(self.client.lease_time_to_live(self.lease, None)).await?;
            if left.ttl() > 0 {
                return Err(error);
            }
            self.lease = within(self.client.lease_grant(TTL.as_secs().cast_signed(), None)).await?.id();
        }
        let read = within(self.client.get(self.key.clone(), None)).await?;
        let stands = read.kvs().first().map(|entry| (entry.lease(), entry.value().to_vec()));
        let guard = match stands {
            Some((lease, value)) if lease == self.lease && value == self.value => {
                self.status.set(Status::registered());
                return Ok(());
            }
            Some((lease, _)) if [0, former, self.lease].contains(&lease) => self.held_by(lease),
            None => self.held_by(0),
            Some(_) if self.bug == Some(Bug::BlindPut) => Vec::new(),
            Some(_) => {
                self.status.set(Status::superseded());
                let _ = within(self.client.lease_revoke(self.lease)).await;
                return Ok(());
            }
        };
        if self.bug != Some(Bug::NoHealing) {
            self.put(guard).await?;
        }
        Ok(())
    }

    async fn update(&mut self) -> Result<(), Error> {
        let start = Instant::now();
        loop {
            if self.status.current().is_final() {
                return Err(Error::new(ErrorKind::Conflict, "superseded"));
            }
            if self.bug == Some(Bug::UpdateByRemoval) {
                let delete = Txn::new().when(self.held_by(self.lease)).and_then([TxnOp::delete(&*self.key, None)]);
                within(self.client.txn(delete)).await?;
                self.put(self.held_by(0)).await?;
            }
            match self.put(self.held_by(self.lease)).await {
                Ok(true) => return Ok(()),
                _ if start.elapsed() > DEADLINE - PATIENCE => return Err(silent()),
                _ => {
                    sleep(TICK).await;
                    let _ = self.look_after().await;
                }
            }
        }
    }

    async fn release(&mut self) -> Result<(), Error> {
        let guard = match self.bug {
            Some(Bug::UnconditionalDelete) => Vec::new(),
            _ => self.held_by(self.lease),
        };
        self.status.set(Status::deregistered());
        let delete = Txn::new().when(guard).and_then([TxnOp::delete(&*self.key, None)]);
        within(self.client.txn(delete)).await?;
        if self.bug != Some(Bug::RenewedForEver) {
            // If this fails, the lease expires.
            let _ = within(self.client.lease_revoke(self.lease)).await;
        }
        Ok(())
    }

    fn held_by(&self, lease: i64) -> Vec<Compare> {
        vec![Compare::lease(&*self.key, CompareOp::Equal, lease)]
    }

    async fn put(&mut self, guard: Vec<Compare>) -> Result<bool, Error> {
        let options = PutOptions::new().with_lease(self.lease);
        let put = TxnOp::put(&*self.key, self.value.clone(), Some(options));
        Ok(within(self.client.txn(Txn::new().when(guard).and_then([put]))).await?.succeeded())
    }
}

#[async_trait]
impl RegistrationBackend for Hold {
    async fn update(&self, instance: Arc<Instance>) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let _ = self.0.send(Order::Update(support::entry::encode(&instance), reply));
        answer.await.unwrap_or_else(|_| Err(silent()))
    }

    async fn deregister(&self) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        let _ = self.0.send(Order::Release(Some(reply)));
        answer.await.unwrap_or_else(|_| Err(silent()))
    }

    fn release(&self) {
        let _ = self.0.send(Order::Release(None));
    }
}

async fn within<T>(call: impl Future<Output = Result<T, etcd_client::Error>>) -> Result<T, Error> {
    timeout(PATIENCE, call).await.map_err(|_| silent())?.map_err(failed)
}

const TICK: Duration = Duration::from_millis(250);
