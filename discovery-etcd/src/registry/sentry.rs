use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use discovery_core::Backoff;
use tokio::{
    sync::mpsc::{self, error::TryRecvError},
    time::{Duration, Instant, MissedTickBehavior, interval_at, sleep},
};
use tracing::debug;

use super::entry::{Command, STEADY};
use crate::{
    client::{Canceled, Event, Failure, Member, Message, Reason, WatchStream},
    cluster::{Asking, Cluster},
};

/// Watches a handle's own entries, one watch for each, all on one stream, so that what others do to them is known at once.
#[derive(Debug)]
pub(super) struct Sentry {
    cluster: Arc<Cluster>,
    orders: mpsc::UnboundedReceiver<Order>,
    /// By the ids that the watches have in etcd; never used twice, since messages of a former watch may still come.
    posts: HashMap<i64, Post>,
    ids: HashMap<String, i64>,
    last_id: i64,
    /// What the present stream was asked for and did not answer yet, in the order of asking: a refusal does not say of which it is.
    unanswered: VecDeque<i64>,
}

/// What the sentry is asked for.
#[derive(Debug)]
pub(super) enum Order {
    /// Watch a key from a revision on, in place of any former watch of it, and tell them.
    Watch { key: String, from: i64, tell: mpsc::UnboundedSender<Command> },
    /// Stop watching a key.
    Leave { key: String },
    /// All that happened to a key up to a revision is known.
    Know { key: String, revision: i64 },
}

#[derive(Debug)]
struct Post {
    key: String,
    /// The last revision that is known.
    from: i64,
    tell: mpsc::UnboundedSender<Command>,
    /// Whether the present stream carries it.
    asked: bool,
}

impl Sentry {
    pub(super) fn new(cluster: Arc<Cluster>, orders: mpsc::UnboundedReceiver<Order>) -> Self {
        Self { cluster, orders, posts: HashMap::new(), ids: HashMap::new(), last_id: 0, unanswered: VecDeque::new() }
    }

    /// Runs until nobody can give orders any more.
    pub(super) async fn run(mut self) {
        let cluster = Arc::clone(&self.cluster);
        let mut delays = Backoff::new(Duration::from_millis(50), Duration::from_secs(2))
            .expect("50 ms to 2 s lies within the bounds")
            .delays();
        let mut moves_to: Option<Asking<'_>> = None;
        loop {
            loop {
                match self.orders.try_recv() {
                    Ok(order) => {
                        self.obey(order);
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return,
                }
            }
            if self.posts.is_empty() {
                let Some(order) = self.orders.recv().await else { return };
                self.obey(order);
                continue;
            }
            let asking = match moves_to.take() {
                Some(asking) => asking,
                None => tokio::select! {
                    biased;
                    order = self.orders.recv() => {
                        let Some(order) = order else { return };
                        self.obey(order);
                        continue;
                    }
                    asking = cluster.reachable() => asking,
                },
            };
            let opened = self.open(asking.member()).await;
            let member = asking.ended(&opened);
            match opened {
                Ok(stream) => {
                    let since = Instant::now();
                    let over = self.attend(stream, &cluster, &member).await;
                    if since.elapsed() >= STEADY {
                        delays.reset();
                    }
                    match over {
                        Over::Closed => return,
                        Over::Idle => continue,
                        Over::Moves(asking) => {
                            moves_to = Some(asking);
                            continue;
                        }
                        Over::Broken(failure) => {
                            cluster.blame(&member, failure);
                        }
                    }
                }
                Err(failure) => debug!(error = %failure.error.report(), "own entries not watched"),
            }
            sleep(delays.next_delay()).await;
        }
    }

    /// Opens a stream with the first of the watches; the others follow on it.
    async fn open(&mut self, member: &Arc<Member>) -> Result<WatchStream, Failure> {
        self.unanswered.clear();
        for post in self.posts.values_mut() {
            post.asked = false;
        }
        let (id, post) = self.posts.iter_mut().next().expect("a stream is opened for what is watched");
        post.asked = true;
        self.unanswered.push_back(*id);
        let key = post.key.clone().into_bytes();
        member.watch(key, Vec::new(), post.from, *id, Duration::MAX).await
    }

    /// Asks for all watches while reading answers: who only asks fills the stream's window and waits for ever.
    async fn attend<'a>(&mut self, mut stream: WatchStream, cluster: &'a Cluster, member: &Arc<Member>) -> Over<'a> {
        let mut looks = interval_at(Instant::now() + LOOK, LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut waiting: VecDeque<i64> = self.posts.iter().filter(|(_, post)| !post.asked).map(|(id, _)| *id).collect();
        let mut left: Vec<i64> = Vec::new();
        loop {
            if self.posts.is_empty() {
                return Over::Idle;
            }
            while waiting.front().is_some_and(|id| !self.posts.contains_key(id)) {
                waiting.pop_front();
            }
            let next = waiting.front().and_then(|id| self.posts.get(id).map(|post| (*id, post.key.clone(), post.from)));
            enum Happened {
                Asked,
                Left,
                Message(Message),
                Order(Option<Order>),
                Look,
                Broken(Failure),
            }
            // Asking borrows the stream as reading does, so only one of both is polled; a full queue gives way to reading.
            let happened = if let Some((id, key, from)) = next {
                let asking = tokio::time::timeout(Duration::from_millis(20), stream.add(key.into_bytes(), from, id));
                match asking.await {
                    Ok(Ok(())) => {
                        waiting.pop_front();
                        if let Some(post) = self.posts.get_mut(&id) {
                            post.asked = true;
                        }
                        self.unanswered.push_back(id);
                        Happened::Asked
                    }
                    Ok(Err(failure)) => Happened::Broken(failure),
                    Err(_) => match stream.next().await {
                        Ok(message) => Happened::Message(message),
                        Err(failure) => Happened::Broken(failure),
                    },
                }
            } else if let Some(id) = left.pop() {
                match tokio::time::timeout(Duration::from_millis(20), stream.cancel(id)).await {
                    // What is not canceled only costs events that nobody minds.
                    Ok(Ok(())) | Err(_) => Happened::Left,
                    Ok(Err(failure)) => Happened::Broken(failure),
                }
            } else {
                tokio::select! {
                    message = stream.next() => message.map_or_else(Happened::Broken, Happened::Message),
                    order = self.orders.recv() => Happened::Order(order),
                    _ = looks.tick() => Happened::Look,
                }
            };
            match happened {
                Happened::Asked | Happened::Left => {}
                Happened::Look => {
                    if let Some(another) = cluster.another(member) {
                        // Nothing is missed on the way: each watch begins with the last revision
                        // that is known.
                        return Over::Moves(another);
                    }
                }
                Happened::Broken(failure) => return Over::Broken(failure),
                Happened::Order(None) => return Over::Closed,
                Happened::Order(Some(order)) => {
                    let Obeyed { added, canceled } = self.obey(order);
                    waiting.extend(added);
                    left.extend(canceled);
                }
                Happened::Message(message) => match self.place(message) {
                    Ok(message) => left.extend(self.report(message)),
                    Err(failure) => {
                        debug!(error = %failure.error.report(), "watches of own entries refused");
                        return Over::Broken(failure);
                    }
                },
            }
        }
    }

    fn obey(&mut self, order: Order) -> Obeyed {
        match order {
            Order::Watch { key, from, tell } => {
                let canceled = self.leave(&key);
                self.last_id += 1;
                self.ids.insert(key.clone(), self.last_id);
                self.posts.insert(self.last_id, Post { key, from, tell, asked: false });
                Obeyed { added: Some(self.last_id), canceled }
            }
            Order::Leave { key } => Obeyed { added: None, canceled: self.leave(&key) },
            Order::Know { key, revision } => {
                let post = self.ids.get(&key).and_then(|id| self.posts.get_mut(id));
                if let Some(post) = post {
                    post.from = post.from.max(revision);
                }
                Obeyed { added: None, canceled: None }
            }
        }
    }

    /// Forgets the watch of a key, and returns its id where the present stream carries it.
    fn leave(&mut self, key: &str) -> Option<i64> {
        let id = self.ids.remove(key)?;
        self.posts.remove(&id).filter(|post| post.asked).map(|_| id)
    }

    /// Forgets a watch that etcd ended, or that is of no more use.
    fn end(&mut self, id: i64) -> Option<Post> {
        let post = self.posts.remove(&id)?;
        self.ids.remove(&post.key);
        Some(post)
    }

    /// Finds out which watch a message is of, or why the stream is of no more use.
    fn place(&mut self, mut message: Message) -> Result<Message, Failure> {
        let answered = if message.created { self.unanswered.pop_front() } else { None };
        if let Some(Canceled::Failed(failure)) = &message.canceled {
            match answered {
                // A permission that is missing comes with no new stream, and the other watches go on.
                Some(id) if message.watch < 0 && failure.reason == Reason::Refused => message.watch = id,
                _ if message.watch < 0 || failure.reason == Reason::Token => return Err(failure.clone()),
                _ => {}
            }
        }
        Ok(message)
    }

    /// Tells what a message says; a watch that is of no more use is to be left.
    fn report(&mut self, message: Message) -> Option<i64> {
        if let Some(canceled) = message.canceled {
            // Also the answer to our own cancel, whose post is gone.
            if let Some(post) = self.end(message.watch) {
                if let Canceled::Failed(failure) = canceled {
                    debug!(error = %failure.error.report(), "watch of an own entry canceled");
                }
                // Nobody minds where the worker is gone.
                let _ = post.tell.send(Command::Unwatched);
            }
            return None;
        }
        let post = self.posts.get_mut(&message.watch)?;
        // Where the store was set back to an older copy of its data, what is to come now is not what is waited for. A member may
        // only lag, too; reading costs little.
        if message.events.is_empty() && (1..post.from).contains(&message.revision) {
            debug!(
                key = post.key,
                from = post.from,
                revision = message.revision,
                "the store is older than what is known"
            );
            let _ = post.tell.send(Command::Unwatched);
            self.end(message.watch);
            return Some(message.watch);
        }
        for event in message.events {
            let (seen, revision) = match event {
                Event::Put { row, .. } => {
                    let revision = row.revision;
                    (Some(row), revision)
                }
                Event::Delete { revision, .. } => (None, revision),
                // Something happened; reading tells what.
                Event::Unknown => {
                    let _ = post.tell.send(Command::Unwatched);
                    continue;
                }
            };
            post.from = post.from.max(revision);
            let _ = post.tell.send(Command::Seen { revision, row: seen });
        }
        None
    }
}

/// What an order changes on the stream.
struct Obeyed {
    /// A watch to ask for.
    added: Option<i64>,
    /// A watch to cancel.
    canceled: Option<i64>,
}

/// Why a stream is attended no longer.
enum Over<'a> {
    Broken(Failure),
    Closed,
    Idle,
    /// The handle stays with another member.
    Moves(Asking<'a>),
}

/// How often to look whether the handle stays with another member.
const LOOK: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;
    use crate::config::{EtcdConfig, Settings};

    #[tokio::test]
    async fn it_ends_with_those_who_order_though_no_member_can_be_reached() {
        let settings = Settings::check(&EtcdConfig::new(["127.0.0.1:1"])).unwrap();
        let (orders, ordered) = mpsc::unbounded_channel();
        let sentry = tokio::spawn(
            Sentry::new(Arc::new(Cluster::new(&settings, tokio::runtime::Handle::current()).unwrap()), ordered).run(),
        );
        let (tell, _told) = mpsc::unbounded_channel();
        orders.send(Order::Watch { key: "payments/a".to_owned(), from: 1, tell }).unwrap();
        sleep(Duration::from_millis(200)).await;
        assert!(!sentry.is_finished());
        drop(orders);
        timeout(Duration::from_secs(10), sentry).await.expect("it ends").unwrap();
    }
}
