//! How a [`Check`] is used: the pool requests it and decides its outcome, the driver of the first
//! lane carries it out.

use std::{
    mem,
    sync::{Arc, MutexGuard, PoisonError},
};

use super::{
    Endpoint,
    check::{Check, Checked},
    lane::Phase,
};
use crate::connection::link::{Health, Link};

/// The part of the pool.
impl Endpoint {
    /// Requests a second connection, to see whether the peer is alive.
    pub(crate) fn begin_check(&self) {
        {
            let mut check = self.lock_check();
            if !matches!(*check, Check::None) {
                return;
            }
            *check = match &*self.lanes[0].lock() {
                Phase::Ready(_) | Phase::Connecting { .. } => Check::Pending,
                // The peer is known to be unreachable already.
                Phase::BackingOff { .. } | Phase::Ended | Phase::Idle => Check::Failed,
            };
        }
        // Notice whether a former connection answers during the check.
        self.former_links().iter().filter(|link| !link.load.is_limited()).for_each(|link| link.load.watch());
        self.lanes[0].recheck();
    }

    /// Closes the second connection. Its calls go on.
    pub(crate) fn end_check(&self) {
        {
            let mut check = self.lock_check();
            *check = match &*check {
                Check::Open(link) | Check::Replacing(link) => {
                    link.load.close();
                    Check::Ending
                }
                Check::None | Check::Pending | Check::Failed | Check::Ending => Check::None,
            };
        }
        self.lanes[0].recheck();
    }

    /// Replaces the other connections with the second one. Their calls go on.
    pub(crate) fn replace_with_check(&self) {
        {
            let mut check = self.lock_check();
            let Check::Open(link) = &*check else { return };
            *check = Check::Replacing(link.clone());
        }
        // The driver of the first lane adopts it; the other lanes connect again.
        for lane in &self.lanes[1..] {
            if let Phase::Ready(link) = &*lane.lock() {
                link.load.close();
            }
        }
        self.recheck();
    }

    /// The outcome of the check so far.
    pub(crate) fn checked(&self) -> Checked {
        let load = match &*self.lock_check() {
            Check::None | Check::Replacing(_) | Check::Ending => return Checked::None,
            Check::Pending => return Checked::Pending,
            Check::Failed => return Checked::Failed,
            Check::Open(link) => Arc::clone(&link.load),
        };
        let former = self.former_links().iter().any(|link| link.load.has_answered());
        Checked::Open { former, answered: load.has_answered() }
    }

    /// The connection of a check, while it takes requests.
    pub(crate) fn check_link(&self) -> Option<Link> {
        match &*self.lock_check() {
            Check::Open(link) | Check::Replacing(link) if !link.load.is_closed() => Some(link.clone()),
            _ => None,
        }
    }
}

/// The part of the driver.
impl Endpoint {
    /// What the driver is to do.
    pub(super) fn check(&self) -> Check {
        self.lock_check().clone()
    }

    /// Records the second connection, or that it could not be opened; returns whether it is still
    /// wanted.
    pub(super) fn take_check(&self, link: Option<Link>) -> bool {
        {
            let mut check = self.lock_check();
            if !matches!(*check, Check::Pending) {
                return false;
            }
            *check = link.map_or(Check::Failed, Check::Open);
        }
        self.mark_dirty();
        true
    }

    /// Ends the check: its connection has become that of the first lane, or has been closed.
    pub(super) fn forget_check(&self) {
        *self.lock_check() = Check::None;
        self.mark_dirty();
    }

    /// Records the health that the peer reports on the second connection.
    pub(super) fn tell_check(&self, health: Health) {
        let is_news = match &mut *self.lock_check() {
            Check::Open(link) => mem::replace(&mut link.health, health) != health,
            _ => false,
        };
        if is_news {
            self.mark_dirty();
        }
    }

    fn lock_check(&self) -> MutexGuard<'_, Check> {
        self.check.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
