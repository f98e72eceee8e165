//! XOR parity with runtime dispatch.
