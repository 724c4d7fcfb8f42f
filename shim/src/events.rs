//! Events to containerd: one queue, one publisher, in the order in which they were put in.
//!
//! The actor puts events in and never waits. The publisher dials containerd's ttrpc socket when it has
//! something to say, tries an event a few times, and goes on to the next: after its restart containerd
//! asks for the state anyway. What containerd is told, and in which order, is the actor's business.

use std::time::{Duration, SystemTime};

use containerd_shim_protos::api::ForwardRequest;
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskIO, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{Message, MessageField};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, warn};

use crate::container::Container;
use crate::error::chain;
use crate::process::{Exited, timestamp};

/// Events that may wait for containerd. A busy pod makes a few in a second; this is minutes of them.
const QUEUE_LENGTH: usize = 2048;
/// One attempt to send.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
/// Attempts for each event; the pause before each grows by [`RETRY_PAUSE`].
const ATTEMPTS: u32 = 5;
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// One event: its topic and its message.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskEvent {
    /// Topic, as containerd's subscribers filter it.
    pub topic: &'static str,
    at: SystemTime,
    type_url: &'static str,
    value: Vec<u8>,
}

impl TaskEvent {
    /// The type's name is written out: asking the message for it would build its whole descriptor.
    fn new(topic: &'static str, type_url: &'static str, message: &impl Message) -> Self {
        TaskEvent {
            topic,
            at: SystemTime::now(),
            type_url,
            // Serialising to memory fails only for uninitialised proto2 messages.
            value: message.write_to_bytes().unwrap_or_default(),
        }
    }

    /// The container was created.
    pub fn create(id: &str, container: &Container, pid: u32) -> Self {
        let stdio = &container.init.stdio;
        let io = TaskIO {
            stdin: stdio.stdin.clone(),
            stdout: stdio.stdout.clone(),
            stderr: stdio.stderr.clone(),
            terminal: stdio.terminal,
            ..Default::default()
        };
        let message = TaskCreate {
            container_id: id.to_owned(),
            bundle: container.bundle.clone(),
            rootfs: container.rootfs.clone(),
            io: MessageField::some(io),
            pid,
            ..Default::default()
        };
        Self::new("/tasks/create", "containerd.events.TaskCreate", &message)
    }

    /// A process runs.
    pub fn start(id: &str, exec_id: &str, pid: u32) -> Self {
        let container_id = id.to_owned();
        if exec_id.is_empty() {
            return Self::new(
                "/tasks/start",
                "containerd.events.TaskStart",
                &TaskStart { container_id, pid, ..Default::default() },
            );
        }
        let message =
            TaskExecStarted { container_id, exec_id: exec_id.to_owned(), pid, ..Default::default() };
        Self::new("/tasks/exec-started", "containerd.events.TaskExecStarted", &message)
    }

    /// A further process was registered.
    pub fn exec_added(id: &str, exec_id: &str) -> Self {
        let message =
            TaskExecAdded { container_id: id.to_owned(), exec_id: exec_id.to_owned(), ..Default::default() };
        Self::new("/tasks/exec-added", "containerd.events.TaskExecAdded", &message)
    }

    /// A process ended.
    pub fn exit(id: &str, exec_id: &str, pid: u32, exit: Exited) -> Self {
        let message = TaskExit {
            container_id: id.to_owned(),
            id: if exec_id.is_empty() { id.to_owned() } else { exec_id.to_owned() },
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        };
        Self::new("/tasks/exit", "containerd.events.TaskExit", &message)
    }

    /// A container was deleted.
    pub fn delete(id: &str, pid: u32, exit: Exited) -> Self {
        let message = TaskDelete {
            container_id: id.to_owned(),
            pid,
            exit_status: exit.status,
            exited_at: MessageField::some(timestamp(exit.at)),
            ..Default::default()
        };
        Self::new("/tasks/delete", "containerd.events.TaskDelete", &message)
    }

    /// The kernel killed a process of the container for want of memory.
    pub fn oom(id: &str) -> Self {
        Self::new(
            "/tasks/oom",
            "containerd.events.TaskOOM",
            &TaskOOM { container_id: id.to_owned(), ..Default::default() },
        )
    }

    /// The container was frozen.
    pub fn paused(id: &str) -> Self {
        Self::new(
            "/tasks/paused",
            "containerd.events.TaskPaused",
            &TaskPaused { container_id: id.to_owned(), ..Default::default() },
        )
    }

    /// The container was thawed.
    pub fn resumed(id: &str) -> Self {
        Self::new(
            "/tasks/resumed",
            "containerd.events.TaskResumed",
            &TaskResumed { container_id: id.to_owned(), ..Default::default() },
        )
    }
}

/// The end that takes events.
#[derive(Debug, Clone)]
pub struct EventQueue {
    sender: mpsc::Sender<TaskEvent>,
}

/// The task that sends them.
#[derive(Debug)]
pub struct Publisher {
    task: JoinHandle<()>,
}

impl EventQueue {
    /// Starts a publisher to the ttrpc socket `address`; with an empty one, events go nowhere.
    pub fn start(address: &str, namespace: &str) -> (Self, Publisher) {
        let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
        let link = Link { address: url(address), namespace: namespace.to_owned(), client: None };
        let task = tokio::spawn(publish(link, receiver));
        (EventQueue { sender }, Publisher { task })
    }

    /// A queue whose events a test reads.
    #[cfg(test)]
    pub fn captured() -> (Self, mpsc::Receiver<TaskEvent>) {
        let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
        (EventQueue { sender }, receiver)
    }

    /// Puts an event in. A full queue drops it: containerd has been away for long.
    pub fn send(&self, event: TaskEvent) {
        if let Err(error) = self.sender.try_send(event) {
            warn!(error = %error, "an event is lost");
        }
    }
}

impl Publisher {
    /// Waits until everything is sent. Every [`EventQueue`] must have been dropped.
    pub async fn flush(self, limit: Duration) {
        if tokio::time::timeout(limit, self.task).await.is_err() {
            warn!("containerd did not take the last events in time");
        }
    }
}

async fn publish(mut link: Link, mut receiver: mpsc::Receiver<TaskEvent>) {
    while let Some(event) = receiver.recv().await {
        if link.address.is_empty() {
            continue;
        }
        for attempt in 1..=ATTEMPTS {
            match link.send(&event).await {
                Ok(()) => break,
                Err(error) if attempt == ATTEMPTS => {
                    warn!(topic = event.topic, error = %chain(&error), "an event is lost");
                }
                Err(error) => {
                    debug!(topic = event.topic, error = %chain(&error), "an event is sent again");
                    link.client = None;
                    tokio::time::sleep(RETRY_PAUSE * (attempt - 1)).await;
                }
            }
        }
    }
}

/// The connection to containerd, made when it is needed.
struct Link {
    address: String,
    namespace: String,
    client: Option<EventsClient>,
}

impl Link {
    async fn send(&mut self, event: &TaskEvent) -> Result<(), ttrpc::Error> {
        let late = |_| ttrpc::Error::Others("no answer within 5 s".to_owned());
        let client = match &self.client {
            Some(client) => client,
            None => {
                let connected = tokio::time::timeout(SEND_DEADLINE, Client::connect(&self.address)).await;
                self.client.insert(EventsClient::new(connected.map_err(late)??))
            }
        };
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp(event.at)),
            namespace: self.namespace.clone(),
            topic: event.topic.to_owned(),
            event: MessageField::some(Any {
                type_url: event.type_url.to_owned(),
                value: event.value.clone(),
                ..Any::new()
            }),
            ..Default::default()
        };
        let request = ForwardRequest { envelope: MessageField::some(envelope), ..Default::default() };
        let context = ttrpc::context::with_duration(SEND_DEADLINE);
        tokio::time::timeout(SEND_DEADLINE, client.forward(context, &request)).await.map_err(late)??;
        Ok(())
    }
}

/// containerd passes a bare path.
fn url(address: &str) -> String {
    if address.is_empty() || address.contains("://") {
        address.to_owned()
    } else {
        format!("unix://{address}")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::{Arc, Mutex};

    use async_trait::async_trait;
    use containerd_shim_protos::api::Empty;
    use containerd_shim_protos::shim_async::{Events, create_events};
    use ttrpc::r#async::{Server, TtrpcContext};

    use super::*;

    #[test]
    fn type_urls_are_the_bare_names() {
        let event = TaskEvent::exit("c", "e", 1, Exited::now(2));
        assert_eq!((event.topic, event.type_url), ("/tasks/exit", "containerd.events.TaskExit"));
        let exit = TaskExit::parse_from_bytes(&event.value).unwrap();
        assert_eq!((exit.container_id.as_str(), exit.id.as_str()), ("c", "e"));
        let exit = TaskExit::parse_from_bytes(&TaskEvent::exit("c", "", 1, Exited::now(2)).value).unwrap();
        assert_eq!(exit.id, "c");
    }

    #[derive(Default)]
    struct Subscriber(Mutex<Vec<(String, String)>>);

    #[async_trait]
    impl Events for Subscriber {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            let envelope = request.envelope.unwrap();
            self.0.lock().unwrap().push((envelope.namespace, envelope.topic));
            Ok(Empty::new())
        }
    }

    #[tokio::test]
    async fn events_arrive_in_order() {
        let path = std::env::temp_dir().join(format!("hull-events-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let subscriber = Arc::new(Subscriber::default());
        let services: HashMap<_, _> = create_events(subscriber.clone());
        let mut server =
            Server::new().bind(&format!("unix://{}", path.display())).unwrap().register_service(services);
        server.start().await.unwrap();
        let (queue, publisher) = EventQueue::start(&path.display().to_string(), "ns");
        queue.send(TaskEvent::start("c", "", 1));
        queue.send(TaskEvent::oom("c"));
        queue.send(TaskEvent::exit("c", "", 1, Exited::now(0)));
        drop(queue);
        publisher.flush(Duration::from_secs(10)).await;
        let seen = subscriber.0.lock().unwrap().clone();
        let topics: Vec<_> = seen.iter().map(|(_, topic)| topic.as_str()).collect();
        assert_eq!(topics, ["/tasks/start", "/tasks/oom", "/tasks/exit"]);
        assert!(seen.iter().all(|(namespace, _)| namespace == "ns"));
        server.shutdown().await.unwrap();
        std::fs::remove_file(&path).unwrap();
    }
}
