//! The bytes that have come on a link, up to the end of a reply.

use std::io;

use bytes::BytesMut;
use tokio::io::AsyncReadExt;

use crate::resp::ReplyScanner;
use crate::transport::Transport;

/// What has come and was not yet dealt with.
pub(super) struct Reading {
    pub(super) incoming: BytesMut,
    pub(super) scanner: ReplyScanner,
    /// A part of what is due has been passed on.
    pub(super) partly: Partly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Partly {
    /// Nothing has been passed on.
    Not,
    /// Of a reply.
    Reply,
    /// Of a message that came unasked.
    Message,
}

impl Reading {
    pub(super) fn new() -> Self {
        Self { incoming: BytesMut::new(), scanner: ReplyScanner::default(), partly: Partly::Not }
    }

    /// The next reply, where nothing else can come.
    pub(super) async fn next(&mut self, stream: &mut Transport) -> io::Result<BytesMut> {
        loop {
            let progress = self.scanner.scan(&self.incoming).map_err(io::Error::other)?;
            if progress.done {
                self.scanner.reset();
                return Ok(self.incoming.split_to(progress.bytes));
            }
            if stream.read_buf(&mut self.incoming).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}
