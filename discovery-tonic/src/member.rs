use std::sync::Arc;

use discovery_core::{Instance, Weight};
use tokio::time::Instant;

use crate::{
    attempt::Target,
    balance::Candidate,
    board::Row,
    endpoint::{Endpoint, Phase},
    outlier::Outlier,
    ramp::Ramp,
};

/// One instance of the set in the pool's hand: its endpoint, and what is known of it whatever becomes of its connections.
pub(crate) struct Member {
    pub(crate) instance: Arc<Instance>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) outlier: Outlier,
    pub(crate) held_until: Option<Instant>,
    pub(crate) ramp: Ramp,
}

impl Member {
    pub(crate) fn describe(&mut self, instance: &Arc<Instance>) {
        self.instance = Arc::clone(instance);
        self.endpoint.describe(instance);
    }

    /// Whether its driver will go on where the endpoint is not drained after all.
    pub(crate) fn is_driven(&self) -> bool {
        match self.endpoint.phase() {
            Phase::Ended => false,
            Phase::Ready(link) => !link.load.is_closed(),
            Phase::BackingOff { .. } | Phase::Connecting { .. } | Phase::Idle => true,
        }
    }

    /// Its slow start begins with its first connection, and with the first one after an attempt that failed.
    pub(crate) fn ramp_up(&mut self, now: Instant) {
        match self.endpoint.phase() {
            Phase::Ready(_) => self.ramp.begin(now),
            Phase::BackingOff { .. } => self.ramp.reset(),
            Phase::Connecting { .. } | Phase::Ended | Phase::Idle => {}
        }
    }

    pub(crate) fn candidate(&self, weight: Weight) -> Option<Candidate<Target>> {
        let link = self.endpoint.serving()?;
        // A connection that came after the verdict; while requests wait, the trial counts them already.
        if self.outlier.is_probing() && !link.load.is_proven() && link.load.unanswered() == 0 {
            link.load.set_trial(1);
        }
        let target = Target {
            instance: Arc::clone(&self.instance),
            endpoint: Arc::clone(&self.endpoint),
            origin: link.origin,
            sender: link.sender,
        };
        Some(Candidate::new(target, weight, link.load))
    }

    pub(crate) fn row(&self) -> Row {
        Row {
            instance: Arc::clone(&self.instance),
            endpoint: Arc::clone(&self.endpoint),
            out_until: self.outlier.out_until(),
            held_until: self.held_until,
        }
    }
}
