//! Buffers of a thread that nobody uses right now.
//!
//! A client or a link needs room while bytes pass through, which is seldom: room of its own would make 10,000 idle
//! clients cost hundreds of megabytes.

use std::cell::RefCell;

use bytes::BytesMut;

/// What a new buffer has room for, in bytes.
const CAPACITY: usize = 16 * 1024;
/// What is kept has room for so many bytes at most.
const LARGEST: usize = 256 * 1024;
/// How many are kept.
const KEPT: usize = 64;

thread_local! {
    static IDLE: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer with some room.
pub(super) fn take() -> BytesMut {
    IDLE.with_borrow_mut(Vec::pop).unwrap_or_else(|| BytesMut::with_capacity(CAPACITY))
}

/// Gives back a buffer that is empty, and leaves one without any room in its place. One that is not empty stays.
pub(super) fn give_back(buffer: &mut BytesMut) {
    if !buffer.is_empty() || buffer.capacity() == 0 {
        return;
    }
    let mut buffer = std::mem::take(buffer);
    // What was read from it counts as room again.
    buffer.clear();
    if buffer.try_reclaim(CAPACITY) && buffer.capacity() <= LARGEST {
        IDLE.with_borrow_mut(|idle| {
            if idle.len() < KEPT {
                idle.push(buffer);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use bytes::Buf;

    use super::*;

    #[test]
    fn what_is_given_back_is_used_again() {
        let mut buffer = take();
        buffer.extend_from_slice(&[0; 1000]);
        let place = buffer.as_ptr();
        buffer.advance(1000);
        give_back(&mut buffer);
        assert_eq!(buffer.capacity(), 0);
        let again = take();
        assert!(again.is_empty() && again.capacity() >= CAPACITY);
        assert_eq!(again.as_ptr(), place);
        let mut huge = BytesMut::with_capacity(10 * LARGEST);
        give_back(&mut huge);
        assert!(take().capacity() <= LARGEST, "a huge one is not kept");
    }

    #[test]
    fn what_is_not_empty_stays() {
        let mut buffer = BytesMut::from(&b"abc"[..]);
        give_back(&mut buffer);
        assert_eq!(&buffer[..], b"abc");
    }
}
