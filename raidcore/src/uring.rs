//! The io_uring ring, and files and block devices on it.
