//! A simulated process with registrations and streams, which can crash and freeze.

use std::{collections::HashMap, sync::Arc, time::Duration};

use discovery_core::{Backend, Claim, Instance, Registration, ServiceName, Status};
use futures::StreamExt;
use support::Proxy;
use tokio::{
    runtime::{Builder, Runtime},
    sync::{mpsc, watch},
    task::{AbortHandle, JoinSet},
    time::sleep,
};

use crate::{
    history::{OWNER, PREFIX, VERSION},
    log::{Journal, Listing, Recording, Updated, Whom, Word},
    subject::Subject,
};

/// One process of a fleet: a runtime and a backend handle, which can crash and freeze.
pub(crate) struct Process {
    place: usize,
    subject: Subject,
    journal: Journal,
    /// Slow consumers hurry up once this is set.
    hurry: watch::Receiver<bool>,
    members: Vec<String>,
    run: u32,
    running: Option<Running>,
}

struct Running {
    runtime: Runtime,
    backend: Option<Arc<dyn Backend>>,
    registrations: HashMap<usize, mpsc::UnboundedSender<Order>>,
    registrars: JoinSet<()>,
    streams: HashMap<usize, (usize, AbortHandle)>,
}

/// A command to a registration.
enum Order {
    Deregister,
    Drop,
    Update { times: usize },
}

impl Process {
    /// Starts a process that reaches the members through these proxies.
    pub(crate) fn start(
        place: usize,
        proxies: &[Proxy],
        subject: Subject,
        journal: Journal,
        hurry: watch::Receiver<bool>,
    ) -> Self {
        let members = proxies.iter().map(Proxy::address).collect();
        let mut process = Self { place, subject, journal, hurry, members, run: 0, running: None };
        process.restart();
        process
    }

    /// Starts it again after a crash.
    pub(crate) fn restart(&mut self) {
        if self.running.is_some() {
            return;
        }
        self.run += 1;
        // With one thread, a sleeping task freezes the whole process.
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads are left");
        let backend = {
            let _entered = runtime.enter();
            Some(self.subject.connect(self.members.clone()))
        };
        let (registrations, registrars, streams) = Default::default();
        self.running = Some(Running { runtime, backend, registrations, registrars, streams });
    }

    /// Ends it at once, so that it sends nothing more to etcd.
    pub(crate) fn crash(&mut self) {
        let Some(running) = self.running.take() else { return };
        let now = self.journal.now();
        running.runtime.shutdown_background();
        let mut log = self.journal.open();
        let run = (self.place, self.run);
        for life in log.lives.iter_mut().filter(|life| life.process == run && life.key.starts_with(PREFIX)) {
            life.released.get_or_insert(now);
        }
        for (recording, _) in running.streams.values() {
            log.recordings[*recording].closed.get_or_insert(now);
        }
    }

    /// Freezes it for a while.
    pub(crate) fn freeze(&self, pause: Duration) {
        let Some(running) = &self.running else { return };
        let journal = self.journal.clone();
        let place = self.place;
        running.runtime.spawn(async move {
            let start = journal.now();
            std::thread::sleep(pause);
            journal.disturbed(Whom::Process(place), start);
        });
    }

    pub(crate) fn register(&mut self, number: usize, service: ServiceName, id: u16, claim: Claim) {
        let Some(running) = &mut self.running else { return };
        let Some(backend) = running.backend.clone() else { return };
        let (orders, ordered) = mpsc::unbounded_channel();
        running.registrations.insert(number, orders);
        // Pairs of ids share an address.
        let address = format!("10.0.0.{}:80", id / 2 + 1).parse().expect("an address");
        let id = format!("i{id}").parse().expect("an id");
        let instance = versioned(Instance::new(address).with_id(id), number, 0);
        let journal = self.journal.clone();
        let process = (self.place, self.run);
        journal.life(number, |life, now| {
            life.process = process;
            life.key = format!("{PREFIX}{service}/{}", instance.id());
            life.began = now;
        });
        let registrar = Registrar { journal, backend, number, orders: ordered };
        running.registrars.spawn_on(registrar.run(service, instance, claim), running.runtime.handle());
    }

    pub(crate) fn update(&self, number: usize, times: usize) {
        self.journal.life(number, |life, _| life.pending += times);
        self.order(number, Order::Update { times });
    }

    pub(crate) fn deregister(&self, number: usize) {
        self.order(number, Order::Deregister);
    }

    pub(crate) fn drop_registration(&self, number: usize) {
        self.order(number, Order::Drop);
    }

    pub(crate) fn open(&mut self, stream: usize, service: ServiceName, slow: bool) {
        let Some(running) = &mut self.running else { return };
        let Some(backend) = running.backend.clone() else { return };
        let journal = self.journal.clone();
        let mut hurry = self.hurry.clone();
        let recording = {
            let opened = journal.now();
            let pace = if slow { " (slow)" } else { "" };
            let name = format!("{stream}{pace} of process {}", self.place);
            let items = Vec::new();
            let service = service.clone();
            let mut log = journal.open();
            log.recordings.push(Recording {
                name,
                process: self.place,
                service,
                opened,
                items,
                ended: false,
                closed: None,
            });
            log.recordings.len() - 1
        };
        let task = running.runtime.spawn(async move {
            let mut updates = backend.watch(&service).expect("there is a runtime, and the backend is open");
            drop(backend);
            while let Some(update) = updates.next().await {
                let now = journal.now();
                journal.open().recordings[recording].items.push((now, update));
                if slow {
                    tokio::select! {
                        () = sleep(Duration::from_millis(300)) => {}
                        _ = hurry.wait_for(|hurry| *hurry) => {}
                    }
                }
            }
            journal.open().recordings[recording].ended = true;
        });
        running.streams.insert(stream, (recording, task.abort_handle()));
    }

    pub(crate) fn close(&mut self, stream: usize) {
        let Some((recording, task)) = self.running.as_mut().and_then(|running| running.streams.remove(&stream)) else {
            return;
        };
        let now = self.journal.now();
        self.journal.open().recordings[recording].closed = Some(now);
        task.abort();
    }

    pub(crate) fn list(&self, service: ServiceName) {
        let Some(running) = &self.running else { return };
        let Some(backend) = running.backend.clone() else { return };
        let journal = self.journal.clone();
        running.runtime.spawn(async move {
            let began = journal.now();
            if let Ok(set) = backend.list(&service).await {
                let ended = journal.now();
                journal.open().listings.push(Listing { service, began, ended, set });
            }
        });
    }

    /// Gives up everything gracefully: half of the registrations by deregistering, half by dropping
    /// them, then the streams and the handle.
    pub(crate) async fn give_up(&mut self) {
        let Some(running) = &mut self.running else { return };
        for (number, orders) in &running.registrations {
            let order = if number % 2 == 0 { Order::Deregister } else { Order::Drop };
            let _ = orders.send(order);
        }
        while running.registrars.join_next().await.is_some() {}
        let streams: Vec<_> = running.streams.keys().copied().collect();
        for stream in streams {
            self.close(stream);
        }
        if let Some(running) = &mut self.running {
            running.backend = None;
        }
    }

    fn order(&self, number: usize, order: Order) {
        let orders = self.running.as_ref().and_then(|running| running.registrations.get(&number));
        // A registration that never came to be receives no orders.
        let _ = orders.map(|orders| orders.send(order));
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A plain drop of the runtime would block.
        if let Some(running) = self.running.take() {
            running.runtime.shutdown_background();
        }
    }
}

/// The owner of one registration.
struct Registrar {
    journal: Journal,
    backend: Arc<dyn Backend>,
    number: usize,
    orders: mpsc::UnboundedReceiver<Order>,
}

impl Registrar {
    async fn run(mut self, service: ServiceName, instance: Instance, claim: Claim) {
        let registered = tokio::select! {
            registered = self.backend.register_with(&service, instance, claim) => registered,
            // Dropped before completion.
            () = given_up(&self.journal, self.number, &mut self.orders) => return self.released(),
        };
        let Ok(mut registration) = registered else { return self.released() };
        self.say(&registration);
        self.journal.life(self.number, |life, now| life.registered = Some(now));
        let mut version = 0;
        loop {
            tokio::select! {
                order = self.orders.recv() => match order {
                    Some(Order::Update { times }) => {
                        for _ in 0..times {
                            version += 1;
                            self.update(&registration, version).await;
                        }
                    }
                    Some(Order::Deregister) => {
                        self.released();
                        if registration.deregister().await.is_ok() {
                            self.journal.life(self.number, |life, now| life.gone = Some(now));
                        }
                        return;
                    }
                    Some(Order::Drop) | None => return self.released(),
                },
                Some(_) = registration.changed() => self.say(&registration),
            }
        }
    }

    async fn update(&self, registration: &Registration, version: u64) {
        let result = registration.update(|instance| versioned(instance, self.number, version)).await;
        let instance = registration.instance();
        self.journal.life(self.number, |life, now| {
            life.pending -= 1;
            life.updates.push(Updated { version, done: result.is_ok().then_some(now) });
            life.instance = Some(instance);
        });
        self.say(registration);
    }

    /// Records the status if it changed.
    fn say(&self, registration: &Registration) {
        let word = match registration.status() {
            Status::Lost { .. } => Word::Lost,
            Status::Superseded { .. } => Word::Superseded,
            _ => Word::Registered,
        };
        let instance = registration.instance();
        self.journal.life(self.number, |life, now| {
            if life.statuses.last().is_none_or(|(_, last)| *last != word) {
                life.statuses.push((now, word));
            }
            life.instance = Some(instance);
        });
    }

    fn released(&self) {
        self.journal.life(self.number, |life, now| {
            life.released.get_or_insert(now);
        });
    }
}

/// Waits for the order that ends a registration. Until it is registered nothing else can be done
/// with it.
async fn given_up(journal: &Journal, number: usize, orders: &mut mpsc::UnboundedReceiver<Order>) {
    while let Some(Order::Update { times }) = orders.recv().await {
        journal.life(number, |life, _| life.pending -= times);
    }
}

fn versioned(instance: Instance, number: usize, version: u64) -> Instance {
    let metadata = [(OWNER, number.to_string()), (VERSION, version.to_string())].try_into().expect("small metadata");
    instance.with_metadata(metadata)
}
