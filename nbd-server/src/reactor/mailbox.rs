//! Calls on their way to the reactor: bounded, and looked at once a turn.

use super::{CallError, Host};
use crate::limits::MAILBOX_CALLS;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

/// A call.
pub(super) type Mail<E> = Box<dyn FnOnce(&mut Host<E>) + Send>;

/// The receiving end.
pub(super) type Mailbox<E> = Receiver<Mail<E>>;

/// A mailbox and the way into it.
pub(super) fn channel<E>() -> (SyncSender<Mail<E>>, Mailbox<E>) {
    sync_channel(MAILBOX_CALLS)
}

/// Puts a call in; the reactor has to be woken after that.
pub(super) fn post<E>(mail: &SyncSender<Mail<E>>, call: Mail<E>) -> Result<(), CallError> {
    mail.try_send(call).map_err(|error| match error {
        TrySendError::Full(_) => CallError::Busy,
        TrySendError::Disconnected(_) => CallError::Gone,
    })
}
