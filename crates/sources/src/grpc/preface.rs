//! Telling HTTP/2 from HTTP/1.1 by a connection's first bytes (RFC 9113, section 3.4).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use lakegate_access::Connection;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

const HTTP2: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection whose first bytes were read, and are given again.
pub(crate) struct Sniffed {
    pub(crate) is_http2: bool,
    begun: BytesMut,
    stream: Connection,
}

/// Reads until the protocol is clear. None: the peer went before it was.
pub(crate) async fn sniff(mut stream: Connection) -> io::Result<Option<Sniffed>> {
    let mut begun = BytesMut::with_capacity(HTTP2.len());
    loop {
        if !HTTP2.starts_with(&begun) {
            return Ok(Some(Sniffed { is_http2: false, begun, stream }));
        }
        if begun.len() == HTTP2.len() {
            return Ok(Some(Sniffed { is_http2: true, begun, stream }));
        }
        let missing = HTTP2.len() - begun.len();
        let mut part = (&mut stream).take(missing as u64);
        if part.read_buf(&mut begun).await? == 0 {
            return Ok(None);
        }
    }
}

impl AsyncRead for Sniffed {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.begun.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, into);
        }
        let len = self.begun.len().min(into.remaining());
        let part = self.begun.split_to(len);
        into.put_slice(part.chunk());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Sniffed {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
