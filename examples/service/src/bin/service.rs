//! `service [ADDRESS]`: serves until it is killed. Prints the address that it listens on.

use std::io::Write as _;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use kernmalloc::Scope;
use kernmalloc_service::handlers;
use kernmalloc_service::kinds::M_HTTP;
use kernmalloc_service::store::Store;

#[cfg(not(feature = "mimalloc"))]
#[global_allocator]
static GLOBAL: kernmalloc::KernMalloc = kernmalloc::KernMalloc;

#[cfg(feature = "mimalloc")]
#[global_allocator]
static GLOBAL: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Result<()> {
    // What no handler asked for is the server's own: on this thread, and on those of the runtime.
    M_HTTP.scope(serve)
}

fn serve() -> Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:3000".to_owned());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_io()
        .on_thread_start(|| Scope::of(&M_HTTP).set_for_thread())
        .build()?;
    runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind(&address)
            .await
            .with_context(|| format!("{address} cannot be listened on; name another address"))?;
        println!("listening on {}", listener.local_addr()?);
        std::io::stdout().flush()?;
        axum::serve(listener, handlers::router(Arc::new(Store::new()))).await?;
        Ok(())
    })
}
