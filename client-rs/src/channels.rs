//! One HTTP/2 connection a server, made when it is first needed and made again when it broke.

use std::{collections::HashMap, sync::Arc};

use arrow_flight::flight_service_client::FlightServiceClient;
use drsdb_proto::ErrorCode;
use parking_lot::Mutex;
use rustls::ClientConfig;
use tonic::transport::{Channel, Endpoint};
use url::Url;

use crate::{
    ClientOptions, Error, Result,
    error::name_of,
    tls::{self, Connector},
};

/// The largest message that a client takes; servers keep theirs near 2 MiB.
const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// HTTP/2 frames up to this size: fewer frames, and so fewer copies and wake-ups, than with the default of 16 KiB.
const MAX_FRAME_BYTES: u32 = 1 << 20;

/// The client's connections.
pub(crate) struct Channels {
    options: ClientOptions,
    tls: Arc<ClientConfig>,
    open: Mutex<HashMap<String, Channel>>,
}

impl Channels {
    pub fn new(options: &ClientOptions) -> Result<Self> {
        Ok(Self { options: options.clone(), tls: tls::client_config(options)?, open: Mutex::new(HashMap::new()) })
    }

    /// A Flight client of `server`; clones share the connection.
    pub fn flight(&self, server: &Url) -> Result<FlightServiceClient<Channel>> {
        let channel = self.channel(server)?;
        Ok(FlightServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(usize::MAX))
    }

    fn channel(&self, server: &Url) -> Result<Channel> {
        let mut open = self.open.lock();
        let name = name_of(server);
        if let Some(channel) = open.get(&name) {
            return Ok(channel.clone());
        }
        let options = &self.options;
        let endpoint = Endpoint::from_shared(name.clone())
            .map_err(|error| {
                Error::new(ErrorCode::InvalidArgument, format!("{name} is not a server address: {error}"))
            })?
            .initial_stream_window_size(options.window_bytes)
            // Room for several streams on one connection, so that one slow consumer does not stop the others.
            .initial_connection_window_size(options.window_bytes.saturating_mul(2).min(i32::MAX as u32))
            .max_frame_size(MAX_FRAME_BYTES)
            .http2_keep_alive_interval(options.keepalive)
            .keep_alive_timeout(options.keepalive);
        let connector = Connector { tls: self.tls.clone(), timeout: options.connect_timeout };
        let channel = endpoint.connect_with_connector_lazy(connector);
        open.insert(name, channel.clone());
        Ok(channel)
    }
}
