//! The tasks on which hyper runs one connection.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak},
};

use futures::future::BoxFuture;
use tokio::{sync::oneshot, task::AbortHandle};

/// Runs hyper's futures of one connection, and can abort it at once with all its requests.
///
/// hyper executes one future for the socket and up to two for each request. A task that has run one
/// is kept for the next, because spawning costs more than a thousand instructions per task: tokio
/// aligns each to two cache lines.
#[derive(Clone, Debug, Default)]
pub(crate) struct Executor(Arc<Tasks>);

#[derive(Default)]
struct Tasks {
    /// The task of the first future, which holds the socket. The other futures end with it. If it
    /// runs another future later, the connection is over, and nothing is lost by aborting it.
    socket: OnceLock<AbortHandle>,
    /// The tasks without a future. They end once this is dropped.
    idle: Mutex<Vec<Idle>>,
}

/// Hands a future to an idle task.
type Idle = oneshot::Sender<BoxFuture<'static, ()>>;

impl Executor {
    pub(crate) fn abort(&self) {
        if let Some(socket) = self.0.socket.get() {
            socket.abort();
        }
    }
}

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        // Boxed, because hyper's future is large and tokio moves it several times, which costs
        // 2,500 instructions per call.
        let mut future: BoxFuture<'static, ()> = Box::pin(future);
        while let Some(idle) = self.0.take_idle() {
            match idle.send(future) {
                Ok(()) => return,
                // The task ended with its runtime.
                Err(back) => future = back,
            }
        }
        let task = tokio::spawn(run(future, Arc::downgrade(&self.0)));
        self.0.socket.get_or_init(|| task.abort_handle());
    }
}

/// Runs one future after another.
async fn run(mut future: BoxFuture<'static, ()>, tasks: Weak<Tasks>) {
    loop {
        future.await;
        let Some(next) = tasks.upgrade().and_then(|tasks| tasks.rest()) else { return };
        let Ok(next) = next.await else { return };
        future = next;
    }
}

impl Tasks {
    /// Adds an idle task; `None` if there are enough.
    fn rest(&self) -> Option<oneshot::Receiver<BoxFuture<'static, ()>>> {
        let mut idle = self.idle();
        if idle.len() >= MOST_IDLE {
            return None;
        }
        let (sender, next) = oneshot::channel();
        idle.push(sender);
        Some(next)
    }

    fn take_idle(&self) -> Option<Idle> {
        self.idle().pop()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks").field("idle", &self.idle().len()).finish_non_exhaustive()
    }
}

/// Enough for eight requests at a time. An idle task takes about 400 bytes.
const MOST_IDLE: usize = 16;

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use hyper::rt::Executor as _;
    use tokio::{
        runtime::{Builder, Handle},
        sync::oneshot::channel,
        task::yield_now,
        time::timeout,
    };

    use super::*;

    fn tasks() -> usize {
        Handle::current().metrics().num_alive_tasks()
    }

    /// Waits until at most this many tasks are left.
    async fn until_left(most: usize) {
        let fewer = async {
            while tasks() > most {
                yield_now().await;
            }
        };
        timeout(Duration::from_secs(5), fewer).await.expect("the others end");
    }

    /// Runs a future, and waits until its task rests or has ended.
    async fn finish(executor: &Executor, future: impl Future<Output = ()> + Send + 'static) {
        let (sender, finished) = channel::<()>();
        executor.execute(async move {
            let _sender = sender;
            future.await;
        });
        // The sender is dropped, by a panic too.
        assert!(timeout(Duration::from_secs(5), finished).await.expect("it runs").is_err());
        yield_now().await;
    }

    #[tokio::test]
    async fn a_task_runs_one_future_after_another() {
        let executor = Executor::default();
        for _ in 0..100 {
            finish(&executor, yield_now()).await;
        }
        assert_eq!(tasks(), 1);
        executor.execute(pending());
        assert_eq!(tasks(), 1, "it was idle");
        executor.execute(pending());
        assert_eq!(tasks(), 2);
    }

    #[tokio::test]
    async fn few_idle_tasks_are_kept_and_all_end_with_the_executor() {
        let executor = Executor::default();
        let (open, gate) = tokio::sync::watch::channel(());
        for _ in 0..100 {
            let mut gate = gate.clone();
            executor.execute(async move { drop(gate.changed().await) });
        }
        assert_eq!(tasks(), 100);
        drop(open);
        until_left(MOST_IDLE).await;
        finish(&executor, yield_now()).await;
        assert_eq!(tasks(), MOST_IDLE);
        drop(executor);
        until_left(0).await;
    }

    #[tokio::test]
    async fn a_task_whose_future_runs_ends_after_it() {
        let executor = Executor::default();
        let (sender, gate) = channel::<()>();
        executor.execute(async move { drop(gate.await) });
        drop(executor);
        yield_now().await;
        assert_eq!(tasks(), 1, "a request goes on without its connection's owner");
        drop(sender);
        until_left(0).await;
    }

    #[tokio::test]
    async fn a_panic_ends_its_own_task_alone() {
        let executor = Executor::default();
        let (sender, gate) = channel::<()>();
        executor.execute(async move { drop(gate.await) });
        finish(&executor, async { panic!("on purpose") }).await;
        assert_eq!(tasks(), 1);
        finish(&executor, yield_now()).await;
        drop(sender);
        yield_now().await;
        assert_eq!(tasks(), 2);
    }

    #[tokio::test]
    async fn abort_ends_the_first_future() {
        let executor = Executor::default();
        let (sender, ended) = channel::<()>();
        executor.execute(async move {
            let _sender = sender;
            pending().await
        });
        executor.execute(pending());
        executor.abort();
        assert!(timeout(Duration::from_secs(5), ended).await.expect("it is aborted").is_err());
        yield_now().await;
        assert_eq!(tasks(), 1, "hyper ends the others by itself");
    }

    /// While a runtime shuts down, a future may be executed after an idle task has ended.
    #[test]
    fn a_task_that_ended_with_its_runtime_is_passed_over() {
        let runtime = || Builder::new_current_thread().enable_all().build().unwrap();
        let executor = Executor::default();
        runtime().block_on(finish(&executor, yield_now()));
        runtime().block_on(finish(&executor, yield_now()));
    }
}
