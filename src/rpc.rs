//! The gRPC edge: decode, check who calls, call the drivers, encode. The only room that names tonic, besides the daemon
//! that serves it.

pub mod authority;
mod code;
mod convert;
mod deadline;
mod image;
mod list;
mod node;
mod runtime;
mod sessions;
mod statistics;
mod stream;
mod trace;

use std::sync::Arc;

use arc_swap::ArcSwap;
use cri_proto::cricket::v1::node_server::NodeServer;
use cri_proto::runtime::v1::image_service_server::ImageServiceServer;
use cri_proto::runtime::v1::runtime_service_server::RuntimeServiceServer;
use tonic::service::InterceptorLayer;
use tonic::transport::server::{Router, UdsConnectInfo};
use tonic::{Request, Status};
use tower::layer::util::{Identity, Stack};

use crate::config::Config;
use crate::image::Images;
use crate::pod::Pods;
use crate::streaming::Streaming;

pub use deadline::DeadlineLayer;
pub use trace::TraceLayer;

/// Encoded answers may be as large as a list of everything on a full node is.
const MAX_ANSWER: usize = 80 * 1024 * 1024;

/// What the services call.
#[derive(Debug)]
pub struct Services {
    pub pods: Pods,
    pub images: Images,
    pub config: Arc<ArcSwap<Config>>,
    pub streaming: Streaming,
}

/// What each request passes, from the last to the first.
type Layers = Stack<DeadlineLayer, Stack<InterceptorLayer<Gate>, Stack<TraceLayer, Identity>>>;

/// Both services on one router.
pub fn router(services: Arc<Services>, max_request: usize) -> Router<Layers> {
    let runtime = RuntimeServiceServer::from_arc(services.clone())
        .max_decoding_message_size(max_request)
        .max_encoding_message_size(MAX_ANSWER);
    let node = NodeServer::from_arc(services.clone());
    let image = ImageServiceServer::from_arc(services)
        .max_decoding_message_size(max_request)
        .max_encoding_message_size(MAX_ANSWER);
    tonic::transport::Server::builder()
        .layer(TraceLayer)
        .layer(InterceptorLayer::new(Gate))
        .layer(DeadlineLayer)
        .add_service(runtime)
        .add_service(image)
        .add_service(node)
}

/// Lets in whoever may open the socket and is root or the daemon's own user: the socket is 0660, and membership in its
/// group is the operator's word that a user may act as root on the node.
#[derive(Debug, Clone, Copy)]
pub struct Gate;

impl tonic::service::Interceptor for Gate {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
        let Some(peer) = peer else {
            return Err(Status::permission_denied("the caller's credentials are unknown"));
        };
        let own = rustix::process::geteuid().as_raw();
        let group = rustix::process::getegid().as_raw();
        if peer.uid() == 0 || peer.uid() == own || peer.gid() == group {
            Ok(request)
        } else {
            Err(Status::permission_denied(format!("uid {} may not use this socket", peer.uid())))
        }
    }
}
