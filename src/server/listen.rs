//! Connections: a bounded number, with timeouts and graceful shutdown.

use std::{
    io,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::{GracefulConnection, GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    time::{interval, sleep, timeout},
};

use super::{Server, bounds, stalled::Stalled};

/// A listening socket.
pub enum Listener {
    Tcp(TcpListener),
    #[cfg(unix)]
    Unix(tokio::net::UnixListener),
}

/// Serves connections until the server's `stop` is set, then until the running answers are complete.
pub async fn serve(server: &Arc<Server>, router: &Router, listeners: Vec<Listener>) {
    let graceful = GracefulShutdown::new();
    let accept = |listener: Listener| {
        let (server, router, graceful) = (server.clone(), router.clone(), &graceful);
        async move {
            loop {
                match &listener {
                    Listener::Tcp(listener) => match listener.accept().await {
                        Ok((stream, _)) => {
                            let _ = stream.set_nodelay(true); // tokens are small and must not be delayed
                            begin(&server, &router, graceful, stream);
                        }
                        Err(error) => wait(&error).await,
                    },
                    #[cfg(unix)]
                    Listener::Unix(listener) => match listener.accept().await {
                        Ok((stream, _)) => begin(&server, &router, graceful, stream),
                        Err(error) => wait(&error).await,
                    },
                }
            }
        }
    };
    let all = futures_util::future::join_all(listeners.into_iter().map(accept));
    tokio::select! {
        _ = all => {}
        () = stopped(server) => {}
    }
    server.draining.store(true, Ordering::Relaxed);
    graceful.shutdown().await;
}

/// Waits for the stop flag, which signal handlers set.
async fn stopped(server: &Server) {
    let mut looks = interval(Duration::from_millis(50));
    while !server.stop.load(Ordering::Relaxed) {
        looks.tick().await;
    }
}

/// Delays the next accept after an error, so that running out of file descriptors does not cause a busy loop.
async fn wait(error: &io::Error) {
    let gone = matches!(error.kind(), io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset);
    if !gone {
        sleep(Duration::from_millis(100)).await;
    }
}

/// Serves a connection, unless there are too many.
fn begin<S>(server: &Arc<Server>, router: &Router, graceful: &GracefulShutdown, mut stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let open = Open::new(server);
    if open.number > bounds::CONNECTIONS {
        if open.number > 2 * bounds::CONNECTIONS {
            return; // too many to even send an error
        }
        tokio::spawn(async move {
            // A client that is still writing when the connection closes may never read the error.
            let reply = async {
                stream.write_all(FULL).await?;
                stream.shutdown().await?;
                tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
            };
            let _ = timeout(bounds::LINGER, reply).await;
            drop(open);
        });
        return;
    }
    let connection = graceful.watch(connection(router, stream));
    tokio::spawn(async move {
        let _ = connection.await; // connection errors affect only this client
        drop(open);
    });
}

/// Returns the future that serves the connection `stream` within the per-connection bounds.
pub fn connection<S>(router: &Router, stream: S) -> impl GracefulConnection<Error = hyper::Error> + Send + use<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds::HEAD_TIME)
        .max_headers(bounds::HEADERS)
        .max_buf_size(bounds::HEAD_BYTES)
        .serve_connection(
            TokioIo::new(Stalled::new(stream, bounds::WRITE_TIME)),
            TowerToHyperService::new(router.clone()),
        )
}

/// The response to excess connections.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 5\r\n\
    Connection: close\r\nContent-Length: 122\r\n\r\n\
    {\"error\":{\"message\":\"too many connections; try again later\",\"type\":\"server_error\",\"param\":null,\
    \"code\":\"connections_full\"}}";

/// An open connection, counted until it is dropped.
struct Open {
    server: Arc<Server>,
    /// The number of open connections, including this one.
    number: usize,
}

impl Open {
    fn new(server: &Arc<Server>) -> Self {
        let number = server.counters.connections.fetch_add(1, Ordering::Relaxed) + 1;
        Self { server: server.clone(), number }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.server.counters.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_error_for_excess_connections_is_a_complete_response() {
        let text = std::str::from_utf8(super::FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{}", body.len());
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }
}
