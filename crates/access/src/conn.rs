//! A connection with or without TLS, as one type.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::peer::Peer;
use crate::tls::{Tls, certificate_of};

/// A connection that is ready for requests.
pub enum Connection {
    /// As it came.
    Plain(TcpStream),
    /// Behind TLS.
    Secure(Box<TlsStream<TcpStream>>),
}

impl Connection {
    /// Shakes hands where TLS is set up, and says who is at the other end.
    ///
    /// # Errors
    /// The handshake failed, or took longer than `within`.
    pub async fn open(stream: TcpStream, tls: Option<&Tls>, within: Duration) -> io::Result<(Self, Peer)> {
        // Answers are small and waited for; a client that cannot have this set is served all the same.
        let _ = stream.set_nodelay(true);
        let address = stream.peer_addr().ok().map(|address| address.ip().to_canonical());
        let Some(tls) = tls else { return Ok((Self::Plain(stream), Peer { address, certificate: None })) };
        let stream = tokio::time::timeout(within, tls.accept(stream)).await??;
        let certificate = certificate_of(&stream);
        Ok((Self::Secure(Box::new(stream)), Peer { address, certificate }))
    }
}

macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match $self.get_mut() {
            Connection::Plain($stream) => $call,
            Connection::Secure($stream) => $call,
        }
    };
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(context, into))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(context, parts))
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Secure(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(context))
    }
}
