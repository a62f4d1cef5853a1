//! Registrations that exist at once and are written as soon as the registry can be reached.
//!
//! This file has the trait and the task that makes the attempts; `kept` is the owner's side.

mod kept;

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::FutureExt;
use tokio::{sync::watch, time::sleep};
use tracing::warn;

use crate::{
    Backoff, Claim, Delays, Error, ErrorKind, Instance, Registration, Registry, ServiceName, Status, StatusReceiver,
    backend::StatusWriter, resolver::require_runtime,
};
use kept::{Kept, Place, Slot, Wanted, runtime_gone};

/// Convenience methods of every [`Registry`].
pub trait RegistryExt: Registry {
    /// Registers an instance, trying until it succeeds, and returns without waiting for that.
    ///
    /// [`register`](Registry::register) gives up after the backend's timeout, so that its caller
    /// knows the outcome. This method is for a process that should start while the registry is
    /// unreachable, and be found as soon as the registry is back.
    ///
    /// The registration starts as [`Lost`](Status::Lost) and does not claim that anything is
    /// written, so R1 does not hold for it. Its [status](Registration::status) reports the
    /// registry's last error. After the first write it is like any other.
    ///
    /// - Errors that may pass, and those that somebody may correct (a permission, a password), are
    ///   followed by another attempt, after a [`Backoff`] with full jitter. After an error of the
    ///   input, the next attempt waits for an [update](Registration::update).
    /// - A conflict with another owner, which `claim` decides, ends it as
    ///   [`Superseded`](Status::Superseded).
    /// - Before the first write, an [update](Registration::update) changes what the next attempt
    ///   writes, and returns at once. If it comes during an attempt that succeeds, it is written
    ///   before the status becomes [`Registered`](Status::Registered).
    /// - [`deregister`](Registration::deregister) waits for the end of an attempt that is under
    ///   way. Dropping the registration ends the attempt, and everything else.
    ///
    /// ```
    /// # async fn example(
    /// #     backend: std::sync::Arc<dyn discovery_core::Backend>,
    /// # ) -> Result<(), discovery_core::Error> {
    /// use discovery_core::{Claim, Instance, RegistryExt};
    ///
    /// let instance = Instance::new("10.0.0.1:80".parse()?);
    /// let mut registration =
    ///     backend.keep_registered(&"payments".parse()?, instance, Claim::TakeOver)?;
    /// // The process can work in the meantime.
    /// while registration.changed().await.is_some_and(|status| !status.is_registered()) {}
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`NoRuntime`](ErrorKind::NoRuntime) outside a tokio runtime;
    /// [`InvalidInput`](ErrorKind::InvalidInput), [`Unsupported`](ErrorKind::Unsupported) and
    /// [`Closed`](ErrorKind::Closed) if the backend returns them at once.
    fn keep_registered(&self, service: &ServiceName, instance: Instance, claim: Claim) -> Result<Registration, Error>
    where
        Self: Clone + Sized,
    {
        let runtime = require_runtime("register")?;
        let instance = Arc::new(instance);
        let registry = self.clone();
        let service = service.clone();
        let (wanted, wants) = watch::channel(Wanted::Registered(Arc::clone(&instance)));
        let waiting = Error::new(ErrorKind::Unavailable, "not registered yet").with_operation("register");
        let status = StatusWriter::new(Status::lost(waiting.with_service(&service)));
        let place = Arc::default();
        let keeper = Keeper {
            registry,
            service: service.clone(),
            claim,
            wants,
            place: Arc::clone(&place),
            status: status.clone(),
            delays: Backoff::default().delays(),
            reported: None,
            is_over: false,
        };
        // Polled here, so that an error which needs no answer from the registry fails the call.
        let mut first = keeper.attempt(&instance);
        let first = match (&mut first).now_or_never() {
            Some(Err(error)) if is_of_call(&error) => return Err(error),
            Some(result) => Box::pin(std::future::ready(result)),
            None => first,
        };
        let task = runtime.spawn(keeper.run(Arc::clone(&instance), first));
        let kept =
            Kept { wanted, place, status: status.clone(), abort: task.abort_handle(), task: Mutex::new(Some(task)) };
        Ok(Registration::new(service, instance, &status, kept))
    }
}

impl<T: Registry> RegistryExt for T {}

/// The task that makes the attempts.
#[derive(Debug)]
struct Keeper<R> {
    registry: R,
    service: ServiceName,
    claim: Claim,
    wants: watch::Receiver<Wanted>,
    place: Arc<Place>,
    status: StatusWriter,
    delays: Delays,
    /// The kind of the error that was logged last.
    reported: Option<ErrorKind>,
    is_over: bool,
}

type Attempt = Pin<Box<dyn Future<Output = Result<Registration, Error>> + Send>>;

/// What follows a failed attempt.
enum After {
    Nothing,
    /// The registry refuses this instance; the next attempt waits for another value.
    AnotherInstance,
    Pause(Duration),
}

/// What became of a registration that an attempt made.
enum HandedOver {
    /// The owner gave it up in the meantime, so it was ended.
    Ended(Result<(), Error>),
    Registered(StatusReceiver),
}

impl<R: Registry + Clone> Keeper<R> {
    fn attempt(&self, instance: &Arc<Instance>) -> Attempt {
        let registry = self.registry.clone();
        let service = self.service.clone();
        let instance = (**instance).clone();
        let claim = self.claim;
        Box::pin(async move { registry.register_with(&service, instance, claim).await })
    }

    /// Runs until the registration is over. Returns how its end went, for an owner that waits for
    /// that.
    async fn run(mut self, instance: Arc<Instance>, first: Attempt) -> Result<(), Error> {
        let result = self.keep(instance, first).await;
        self.is_over = true;
        result
    }

    async fn keep(&mut self, mut instance: Arc<Instance>, mut attempt: Attempt) -> Result<(), Error> {
        loop {
            let result = tokio::select! {
                biased;
                // The attempt may have written an entry, which must be removed again. After an
                // error nothing stays registered.
                () = unwanted(&mut self.wants) => return match attempt.await {
                    Ok(registration) => registration.deregister().await,
                    Err(_) => Ok(()),
                },
                // Another value waits for this attempt; otherwise updates that come faster than the
                // registry answers would keep the instance from ever being registered.
                result = &mut attempt => result,
            };
            let handed_over = match result {
                Ok(registration) => self.hand_over(registration, &mut instance).await,
                Err(error) => Err(error),
            };
            let after = match handed_over {
                Ok(HandedOver::Registered(statuses)) => return self.follow(statuses).await,
                Ok(HandedOver::Ended(result)) => return result,
                Err(error) => self.failed(error),
            };
            // An update that waits for the registration now finds the status set above.
            self.place.change(|slot| *slot = Slot::Empty);
            let is_refused = match after {
                After::Nothing => return Ok(()),
                After::AnotherInstance => true,
                After::Pause(pause) => {
                    tokio::select! {
                        biased;
                        () = unwanted(&mut self.wants) => return Ok(()),
                        () = sleep(pause) => {}
                    }
                    false
                }
            };
            let is_next = |wanted: &Wanted| match wanted {
                Wanted::Registered(wanted) => !(is_refused && Arc::ptr_eq(wanted, &instance)),
                Wanted::Gone => true,
            };
            // Without an owner the task has been aborted, so an error needs no handling.
            let Ok(wanted) = self.wants.wait_for(is_next).await else { return Ok(()) };
            let Wanted::Registered(next) = &*wanted else { return Ok(()) };
            let next = Arc::clone(next);
            drop(wanted);
            attempt = self.attempt(&next);
            instance = next;
        }
    }

    /// Hands the registration over to its owner, with the instance that is wanted now; ends it if
    /// none is wanted.
    ///
    /// # Errors
    ///
    /// If the registry refuses the wanted instance and keeps no entry of it.
    async fn hand_over(
        &mut self,
        registration: Registration,
        instance: &mut Arc<Instance>,
    ) -> Result<HandedOver, Error> {
        // From here on, updates wait for the registration; otherwise updates that come faster than
        // the registry answers would keep it from ever being handed over.
        let mut wanted = self.place.change(|slot| {
            *slot = Slot::Taken;
            self.wants.borrow().instance()
        });
        // `Registered` is not reported before an attempt to write what is wanted now, so that an
        // owner who awaits it finds the values of its last update.
        while let Some(next) = wanted.filter(|wanted| !Arc::ptr_eq(wanted, instance)) {
            let updated = tokio::select! {
                biased;
                () = unwanted(&mut self.wants) => break,
                updated = registration.update(|_| (*next).clone()) => updated,
            };
            wanted = match updated {
                Err(error) if is_of_entry(&error) => {
                    // This value is not tried again either.
                    *instance = next;
                    return Err(error);
                }
                // The former values stay registered until the registry accepts these.
                Err(error) if !error.is_retryable() => {
                    self.failed(error);
                    tokio::select! {
                        biased;
                        () = unwanted(&mut self.wants) => break,
                        () = sleep(self.delays.next_delay()) => {}
                    }
                    Some(next)
                }
                // After a retryable error the registration itself keeps trying to write the value.
                Ok(()) | Err(_) => {
                    *instance = next;
                    self.status.set(registration.status());
                    break;
                }
            };
        }
        let statuses = registration.statuses();
        // Under the lock that the owner takes too, so that it either finds the registration or has
        // cleared what is wanted before.
        let unwanted = self.place.change(|slot| {
            if self.wants.borrow().instance().is_none() {
                return Some(registration);
            }
            *slot = Slot::Registered(Arc::new(registration));
            None
        });
        Ok(match unwanted {
            Some(registration) => HandedOver::Ended(registration.deregister().await),
            None => HandedOver::Registered(statuses),
        })
    }

    /// Passes on the statuses of the registration until the last.
    async fn follow(&mut self, mut statuses: StatusReceiver) -> Result<(), Error> {
        self.status.set(statuses.current());
        while let Some(status) = statuses.changed().await {
            self.status.set(status);
        }
        Ok(())
    }

    fn failed(&mut self, error: Error) -> After {
        match error.kind() {
            ErrorKind::Conflict => {
                self.status.set(Status::superseded());
                return After::Nothing;
            }
            ErrorKind::Closed => {
                self.status.set(Status::deregistered());
                return After::Nothing;
            }
            kind if self.reported.replace(kind) != Some(kind) => {
                warn!(service = %self.service, error = %error.report(), "not registered yet");
            }
            _ => {}
        }
        let after = if is_of_call(&error) { After::AnotherInstance } else { After::Pause(self.delays.next_delay()) };
        self.status.set(Status::lost(error));
        after
    }
}

impl<R> Drop for Keeper<R> {
    fn drop(&mut self) {
        if !self.is_over {
            // Either the owner ended it, with a status that is final, or the runtime has shut down.
            self.status.set(Status::lost(runtime_gone()));
            self.place.change(|slot| {
                if matches!(slot, Slot::Empty | Slot::Taken) {
                    *slot = Slot::Ended;
                }
            });
        }
    }
}

/// Waits until no instance is wanted any more. Cancel safe.
async fn unwanted(wants: &mut watch::Receiver<Wanted>) {
    // Without an owner the task has been aborted.
    let _ = wants.wait_for(|wanted| matches!(wanted, Wanted::Gone)).await;
}

/// Returns whether an error concerns the call itself, so that another attempt with the same input
/// would fail too.
fn is_of_call(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Closed | ErrorKind::InvalidInput | ErrorKind::NoRuntime | ErrorKind::Unsupported)
}

/// Returns whether an error means that no entry is left to keep, or that it can never be as wanted.
fn is_of_entry(error: &Error) -> bool {
    is_of_call(error) || error.kind() == ErrorKind::Conflict
}

#[cfg(test)]
mod tests;
