//! Drives devices on virtual time.

use crate::dev::{BlockDev, Completion};
use crate::limits::{SIM_IDLE_TURNS, SIM_RUN_TURNS};
use crate::time::{Clock, Time};

/// Why [`run_until`] gave up. A request that is never answered ends here, so no test waits without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// Nothing is due at any time, so the condition can never become true.
    #[error("at {at:?} nothing is due any more and the condition does not hold")]
    Stuck {
        /// The virtual time.
        at: Time,
    },
    /// The device was turned over very often and the condition still does not hold.
    #[error("at {at:?}, after {turns} turns, the condition does not hold")]
    Unending {
        /// The virtual time.
        at: Time,
        /// Calls of `reap`.
        turns: u64,
    },
}

/// Reaps `dev` into `done` until `pred(dev, done)` holds. When a turn completes nothing, `clock`, which must be
/// the virtual clock of all that is below, advances to [`BlockDev::wake_at`].
///
/// `dev` is reaped once before `pred` is first asked. After an error, `done` holds what completed so far.
pub fn run_until<D: BlockDev + ?Sized>(
    clock: &Clock,
    dev: &mut D,
    done: &mut Vec<Completion>,
    mut pred: impl FnMut(&D, &[Completion]) -> bool,
) -> Result<(), RunError> {
    let mut idle = 0;
    for _ in 0..SIM_RUN_TURNS {
        let before = done.len();
        dev.reap(done);
        if pred(dev, done) {
            return Ok(());
        }
        match dev.wake_at() {
            _ if done.len() > before => idle = 0,
            Some(at) if at < Time::NEVER => {
                idle = 0;
                clock.advance_to(at);
            }
            // A device of several floors may need a few turns to carry a completion up.
            _ if idle < SIM_IDLE_TURNS => idle += 1,
            _ => return Err(RunError::Stuck { at: clock.now() }),
        }
    }
    Err(RunError::Unending { at: clock.now(), turns: SIM_RUN_TURNS })
}
