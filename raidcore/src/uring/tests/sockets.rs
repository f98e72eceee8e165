//! Ports: data arrives whole and in order, memory comes back, and what is given up hurts nobody.

use super::*;
use smallvec::smallvec;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

fn view(ring: &Ring, bytes: &[u8]) -> SendPart {
    let mut buf = ring.slab().alloc(bytes.len()).unwrap();
    buf.copy_from_slice(bytes);
    SendPart::View(buf.freeze())
}

#[test]
fn what_is_received_is_what_was_sent_and_the_memory_comes_back() {
    for ring in rings() {
        let port = ring.port();
        let (fd, mut peer) = pair();
        port.recv(&fd, ring.slab().alloc(4096).unwrap(), 5);
        peer.write_all(b"hello").unwrap();
        let event = event(&ring, &port);
        assert_eq!(event.token, 5);
        assert!(matches!(event.result, Ok(Outcome::Bytes(5))), "{event:?}");
        let EventMemory::Buf(buf) = event.memory else { panic!() };
        assert_eq!((&buf[..5], buf.len()), (&b"hello"[..], 4096));
        drop(buf);
        assert_eq!(ring.slab().usage().used_bytes, 0);
        assert!(!port.is_ready());
    }
}

#[test]
fn a_closed_peer_is_zero_bytes_for_a_receiver_and_an_error_for_a_sender() {
    let ring = ring();
    let port = ring.port();
    let (fd, peer) = pair();
    drop(peer);
    port.recv(&fd, ring.slab().alloc(4096).unwrap(), 1);
    assert!(matches!(event(&ring, &port).result, Ok(Outcome::Bytes(0))));
    port.send(&fd, vec![SendPart::Bytes(smallvec![1; 16])], 2);
    let event = event(&ring, &port);
    assert_eq!(errno(&event.result), Some(libc::EPIPE));
    assert!(matches!(event.memory, EventMemory::Parts(parts) if parts.len() == 1));
}

#[test]
fn a_send_of_eight_mebibytes_goes_through_a_small_socket_buffer_whole_and_in_order() {
    for ring in rings() {
        let port = ring.port();
        let (fd, mut peer) = pair();
        let payload = pattern(8 << 20);
        let mut parts = vec![SendPart::Bytes(smallvec![9; 28])];
        parts.extend(payload.chunks(1 << 20).map(|chunk| view(&ring, chunk)));
        port.send(&fd, parts, 1);
        let reader = std::thread::spawn(move || {
            let mut all = vec![0; (8 << 20) + 28];
            peer.read_exact(&mut all).unwrap();
            all
        });
        let event = event(&ring, &port);
        assert!(matches!(event.result, Ok(Outcome::Bytes(n)) if n == (8 << 20) + 28));
        let all = reader.join().unwrap();
        assert!(all[..28] == [9; 28] && all[28..] == payload);
        drop(event);
        assert_eq!(ring.slab().usage().used_bytes, 0);
    }
}

#[test]
fn more_parts_than_one_call_takes_are_all_sent() {
    let ring = ring();
    let port = ring.port();
    let (fd, mut peer) = pair();
    let parts = (0..3000).map(|i| SendPart::Bytes(smallvec![i as u8; 3])).collect();
    port.send(&fd, parts, 1);
    let mut all = vec![0; 9000];
    assert!(matches!(event(&ring, &port).result, Ok(Outcome::Bytes(9000))));
    peer.read_exact(&mut all).unwrap();
    assert!(all.chunks(3).enumerate().all(|(i, part)| part == [i as u8; 3]));
}

#[test]
fn an_empty_send_is_done_at_once() {
    let ring = ring();
    let port = ring.port();
    let (fd, _peer) = pair();
    port.send(&fd, Vec::new(), 1);
    assert!(matches!(event(&ring, &port).result, Ok(Outcome::Bytes(0))));
}

#[test]
fn receiving_all_fills_several_buffers_from_a_peer_that_dribbles() {
    for ring in rings() {
        let port = ring.port();
        let (fd, mut peer) = pair();
        let payload = pattern(3 << 20);
        let sent = payload.clone();
        port.recv_all(&fd, ring.slab().alloc_list(3 << 20).unwrap(), 1);
        let writer = std::thread::spawn(move || {
            for piece in sent.chunks(100_003) {
                peer.write_all(piece).unwrap();
            }
        });
        let event = event(&ring, &port);
        writer.join().unwrap();
        assert!(matches!(event.result, Ok(Outcome::Bytes(n)) if n == 3 << 20));
        let EventMemory::Bufs(bufs) = event.memory else { panic!() };
        assert!(bufs.iter().flat_map(|buf| buf.iter()).eq(payload.iter()));
    }
}

#[test]
fn receiving_all_ends_short_when_the_peer_closes_and_receiving_some_ends_with_what_is_there() {
    let ring = ring();
    let port = ring.port();
    let (fd, mut peer) = pair();
    peer.write_all(&[1; 10]).unwrap();
    port.recv_into(&fd, smallvec![ring.slab().alloc(4).unwrap(), ring.slab().alloc(4096).unwrap()], 1);
    assert!(matches!(event(&ring, &port).result, Ok(Outcome::Bytes(10))));
    peer.write_all(&[2; 10]).unwrap();
    drop(peer);
    port.recv_all(&fd, smallvec![ring.slab().alloc(4096).unwrap()], 2);
    assert!(matches!(event(&ring, &port).result, Ok(Outcome::Bytes(10))));
}

#[test]
fn a_connection_is_accepted_with_a_descriptor_of_its_own() {
    let ring = ring();
    let port = ring.port();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("socket");
    let listener = Arc::new(OwnedFd::from(UnixListener::bind(&path).unwrap()));
    port.accept(&listener, 1);
    port.poll_readable(&listener, 2);
    ring.enter(None, false).unwrap();
    let mut client = UnixStream::connect(&path).unwrap();
    let mut accepted = None;
    while accepted.is_none() {
        if let Outcome::Accepted(fd) = event(&ring, &port).result.unwrap() {
            accepted = Some(Arc::new(fd));
        }
    }
    client.write_all(b"x").unwrap();
    port.recv(&accepted.unwrap(), ring.slab().alloc(1).unwrap(), 3);
    until(&ring, || port.next().filter(|event| event.token == 3)).result.unwrap();
}

#[test]
fn a_cancelled_receive_ends_as_cancelled_with_its_memory() {
    for ring in rings() {
        let port = ring.port();
        let (fd, _peer) = pair();
        port.recv(&fd, ring.slab().alloc(4096).unwrap(), 1);
        port.recv(&fd, ring.slab().alloc(4096).unwrap(), 2);
        ring.enter(None, false).unwrap();
        port.cancel(1);
        // This one is cancelled before the kernel hears of it.
        port.recv(&fd, ring.slab().alloc(4096).unwrap(), 3);
        port.cancel(3);
        port.cancel(99);
        for token in [3, 1] {
            let event = event(&ring, &port);
            assert_eq!((event.token, errno(&event.result)), (token, Some(libc::ECANCELED)));
            assert!(matches!(event.memory, EventMemory::Buf(_)));
        }
        assert_eq!(ring.in_flight(), 1);
    }
}

#[test]
fn an_operation_past_its_deadline_is_answered_at_once_and_its_memory_stays_until_the_kernel_lets_go() {
    for ring in rings() {
        let port = ring.port();
        let (fd, mut peer) = pair();
        port.recv(&fd, ring.slab().alloc(4096).unwrap(), 1);
        ring.enter(None, false).unwrap();
        port.give_up_at(1, ring.clock().now() + Duration::from_millis(3));
        let event = event(&ring, &port);
        assert_eq!((event.token, errno(&event.result)), (1, Some(libc::ETIMEDOUT)));
        assert!(matches!(event.memory, EventMemory::None));
        // Answered, and not yet cancelled: the kernel could still write to the memory.
        assert_eq!((ring.quarantined(), ring.slab().usage().used_bytes), (1, 4096));
        until(&ring, || (ring.quarantined() == 0).then_some(()));
        assert_eq!((ring.in_flight(), ring.slab().usage().used_bytes), (0, 0));
        assert!(port.next().is_none());
        // The cancelled receive took nothing from the socket.
        peer.write_all(b"y").unwrap();
        port.recv(&fd, ring.slab().alloc(4096).unwrap(), 2);
        assert!(matches!(super::event(&ring, &port).result, Ok(Outcome::Bytes(1))));
    }
}

#[test]
fn a_dropped_port_cancels_its_operations_and_leaks_nothing() {
    let ring = ring();
    let other = ring.port();
    let (fd, mut peer) = pair();
    let port = ring.port();
    port.recv(&fd, ring.slab().alloc(4096).unwrap(), 1);
    ring.enter(None, false).unwrap();
    port.recv(&fd, ring.slab().alloc(4096).unwrap(), 2);
    drop((port, fd));
    until(&ring, || (ring.in_flight() == 0).then_some(()));
    assert_eq!(ring.slab().usage().used_bytes, 0);
    // The operation held the last handle to the descriptor; now it is closed.
    assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    assert!(!other.is_ready());
}

#[test]
fn a_ring_dropped_with_operations_in_flight_gives_all_memory_back() {
    for ring in rings() {
        let slab = ring.slab().clone();
        let port = ring.port();
        let (fd, mut peer) = pair();
        for token in 0..40 {
            port.recv(&fd, slab.alloc(4096).unwrap(), token);
        }
        ring.enter(None, false).unwrap();
        drop((ring, port, fd));
        assert_eq!(slab.usage().used_bytes, 0);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
    }
}

#[test]
fn a_drain_answers_everything_and_the_ring_works_on() {
    for ring in rings() {
        let port = ring.port();
        let (fd, mut peer) = pair();
        for token in 0..200 {
            port.recv(&fd, ring.slab().alloc(4096).unwrap(), token);
        }
        ring.enter(None, false).unwrap();
        assert!(ring.drain(Duration::from_secs(10)));
        let answers: Vec<_> = std::iter::from_fn(|| port.next()).collect();
        assert_eq!(answers.len(), 200);
        assert!(answers.iter().all(|event| errno(&event.result) == Some(libc::ECANCELED)));
        peer.write_all(b"z").unwrap();
        port.recv(&fd, ring.slab().alloc(4096).unwrap(), 1);
        assert!(matches!(event(&ring, &port).result, Ok(Outcome::Bytes(1))));
    }
}

#[test]
fn more_operations_than_the_completion_queue_holds_all_complete() {
    let ring = ring_with(&RingConfig { entries: 32, ..RingConfig::default() });
    let depth = ring.features().depth as usize;
    let port = ring.port();
    let pairs: Vec<_> = (0..8).map(|_| pair()).collect();
    let count = depth * 3;
    for token in 0..count {
        port.poll_readable(&pairs[token % 8].0, token as u64);
    }
    ring.enter(None, false).unwrap();
    assert_eq!(ring.in_flight(), count);
    for (_, peer) in &pairs {
        (&*peer).write_all(b"!").unwrap();
    }
    let mut seen = vec![false; count];
    for _ in 0..count {
        let event = event(&ring, &port);
        assert!(matches!(event.result, Ok(Outcome::Readable)));
        assert!(!std::mem::replace(&mut seen[event.token as usize], true));
    }
    assert!(seen.iter().all(|&seen| seen) && port.next().is_none());
}

#[test]
fn a_ring_full_of_idle_operations_can_still_be_woken_and_cancelled() {
    let ring = ring_with(&RingConfig { entries: 32, ..RingConfig::default() });
    let port = ring.port();
    let (fd, _peer) = pair();
    let count = u64::from(ring.features().depth) * 2;
    for token in 0..count {
        port.poll_readable(&fd, token);
    }
    ring.enter(None, false).unwrap();
    let waker = ring.waker();
    let thread = std::thread::spawn(move || waker.wake());
    ring.enter(None, true).unwrap();
    thread.join().unwrap();
    port.cancel(0);
    let event = event(&ring, &port);
    assert_eq!((event.token, errno(&event.result)), (0, Some(libc::ECANCELED)));
    assert!(ring.drain(Duration::from_secs(10)));
    assert_eq!(std::iter::from_fn(|| port.next()).count() as u64, count - 1);
}
