//! The client against a real ttrpc server over a socket pair.

use std::collections::HashMap;
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use hull_protocol::agent::{Event, Exit};
use hull_protocol::agent_ttrpc::{Agent, create_agent};
use ttrpc::r#async::transport::Listener;
use ttrpc::r#async::{Server, TtrpcContext};

use super::*;

struct Guest {
    version: u32,
}

#[async_trait]
impl Agent for Guest {
    async fn hello(&self, _: &TtrpcContext, request: HelloRequest) -> ttrpc::Result<HelloResponse> {
        assert_eq!(request.version, hull_protocol::VERSION);
        Ok(HelloResponse { version: self.version, ..Default::default() })
    }
    async fn start_process(
        &self,
        _: &TtrpcContext,
        request: ProcessRequest,
    ) -> ttrpc::Result<hull_protocol::agent::StartProcessResponse> {
        let text = format!("no such file: {}", request.process_id);
        Err(ttrpc::Error::RpcStatus(ttrpc::get_status(Code::INVALID_ARGUMENT, text)))
    }
    async fn signal_process(&self, _: &TtrpcContext, _: SignalProcessRequest) -> ttrpc::Result<Empty> {
        std::future::pending().await
    }
    async fn next_event(&self, _: &TtrpcContext, _: Empty) -> ttrpc::Result<Event> {
        let exit = Exit { container_id: "c".to_owned(), status: 3, unix_time_ns: -1, ..Default::default() };
        Ok(Event { event: Some(event::Event::Exit(exit)), ..Default::default() })
    }
}

/// The agent has dialled; it serves on that one connection.
async fn connected(version: u32) -> (TtrpcAgent, Server) {
    let (host, guest) = StdUnixStream::pair().unwrap();
    guest.set_nonblocking(true).unwrap();
    let guest = tokio::net::UnixStream::from_std(guest).unwrap();
    let services: HashMap<_, _> = create_agent(Arc::new(Guest { version }));
    let connections = stream::iter([Ok(guest)]).chain(stream::pending());
    let mut server = Server::new().add_listener(Listener::new(connections)).register_service(services);
    server.start().await.unwrap();
    (TtrpcAgent::new(host, Duration::from_secs(5)).unwrap(), server)
}

#[tokio::test]
async fn versions_must_agree() {
    let (agent, _server) = connected(hull_protocol::VERSION).await;
    agent.hello(HelloRequest::new()).await.unwrap();
    let (agent, _server) = connected(hull_protocol::VERSION + 1).await;
    let error = agent.hello(HelloRequest::new()).await.unwrap_err();
    assert!(matches!(error, AgentError::Version { .. }), "{error}");
}

#[tokio::test]
async fn refusals_keep_code_and_text() {
    let (agent, _server) = connected(1).await;
    let error = agent.start("c", "e").await.unwrap_err();
    assert_eq!((error.code(), error.to_string()), (Code::INVALID_ARGUMENT, "no such file: e".to_owned()));
}

#[tokio::test]
async fn a_silent_guest_is_late() {
    let (agent, _server) = connected(1).await;
    let error = agent.signal("c", "", 9, false).await.unwrap_err();
    assert!(matches!(error, AgentError::Late { .. }), "{error}");
}

#[tokio::test]
async fn a_closed_connection_fails_calls_at_once() {
    let (host, guest) = StdUnixStream::pair().unwrap();
    let agent = TtrpcAgent::new(host, Duration::from_secs(60)).unwrap();
    drop(guest);
    let error = agent.start("c", "").await.unwrap_err();
    assert!(matches!(error, AgentError::Closed { .. }), "{error}");
}

#[tokio::test]
async fn events_are_parsed_and_their_times_mistrusted() {
    let (agent, _server) = connected(1).await;
    let event = agent.next_event().await.unwrap();
    let AgentEvent::Exit { container, process, exit } = event else { panic!("{event:?}") };
    assert_eq!((container.as_str(), process.as_str(), exit.status), ("c", "", 3));
    assert!(exit.at.elapsed().unwrap() < Duration::from_secs(5));
}

#[test]
fn times_near_ours_are_kept() {
    let now = SystemTime::now();
    let past = now - Duration::from_secs(5);
    let ns = |at: SystemTime| i64::try_from(at.duration_since(UNIX_EPOCH).unwrap().as_nanos()).unwrap();
    assert_eq!(guest_time(ns(past)), past);
    assert!(guest_time(ns(now + Duration::from_secs(5))) < now + Duration::from_secs(1));
    assert!(guest_time(0) >= now);
}

#[tokio::test]
async fn requests_too_long_for_the_transport_are_refused() {
    let (agent, _server) = connected(1).await;
    let request = CreateContainerRequest { spec: vec![0; MAX_MESSAGE_BYTES], ..Default::default() };
    let error = agent.create_container(request).await.unwrap_err();
    assert!(matches!(error, AgentError::TooLong { .. }), "{error}");
}
