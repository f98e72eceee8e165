//! The one place where errors become NBD error numbers.
//!
//! The protocol has few; whoever calls [`NbdError::of`] logs the full cause first, for here it is narrowed.

use raidcore::dev::{ErrorKind, IoError, OpKind};

/// Error numbers of the protocol. They are fixed by the NBD specification, not by the platform.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum NbdError {
    /// Operation not permitted: a write to a read-only export.
    Eperm = 1,
    /// Input/output error.
    Eio = 5,
    /// Cannot allocate memory: too much is in flight.
    Enomem = 12,
    /// Invalid argument.
    Einval = 22,
    /// No space left on device: also a write past the end.
    Enospc = 28,
    /// Value too large: a read that must not be fragmented and is too large for that.
    Eoverflow = 75,
    /// Operation not supported: a fast zero that would not be fast, and nothing else.
    Enotsup = 95,
    /// The server is in the process of being shut down.
    Eshutdown = 108,
}

impl NbdError {
    /// The number on the wire.
    pub const fn code(self) -> u32 {
        self as u32
    }

    /// What a device's error is to a client.
    pub fn of(error: &IoError) -> NbdError {
        let writes = matches!(error.op, OpKind::Write | OpKind::WriteZeroes);
        match error.kind {
            ErrorKind::OutOfRange if writes => NbdError::Enospc,
            ErrorKind::OutOfRange | ErrorKind::Misaligned | ErrorKind::TooLarge => NbdError::Einval,
            // Whether zeroes are fast was decided before the device was asked, so this is not about that.
            ErrorKind::Unsupported => NbdError::Einval,
            ErrorKind::ReadOnly => NbdError::Eperm,
            ErrorKind::NoSpace => NbdError::Enospc,
            ErrorKind::Busy => NbdError::Enomem,
            ErrorKind::Stopped => NbdError::Eshutdown,
            ErrorKind::Medium
            | ErrorKind::Gone
            | ErrorKind::Timeout
            | ErrorKind::Canceled
            | ErrorKind::Short
            | ErrorKind::ArrayFailed => NbdError::Eio,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_of_device_is_enospc_to_writers_and_einval_to_everybody_else() {
        let of = |op| NbdError::of(&IoError::new(ErrorKind::OutOfRange, op, 0, 1));
        assert_eq!((of(OpKind::Write), of(OpKind::WriteZeroes)), (NbdError::Enospc, NbdError::Enospc));
        assert_eq!((of(OpKind::Read), of(OpKind::Discard)), (NbdError::Einval, NbdError::Einval));
    }

    #[test]
    fn numbers_are_those_of_the_specification() {
        let all = [
            (NbdError::Eperm, 1),
            (NbdError::Eio, 5),
            (NbdError::Enomem, 12),
            (NbdError::Einval, 22),
            (NbdError::Enospc, 28),
            (NbdError::Eoverflow, 75),
            (NbdError::Enotsup, 95),
            (NbdError::Eshutdown, 108),
        ];
        assert!(all.iter().all(|(error, code)| error.code() == *code));
    }
}
