//! The pod's table without a kernel's help: order of events, races of the reaper, caps, codes.

use std::io;
use std::sync::Arc;

use async_trait::async_trait;
use hull_protocol::limits::{MAX_CONTAINERS, MAX_PROCESSES_PER_CONTAINER};

use super::io::{Connection, Wanted};
use super::state::{Change, State};
use super::*;

struct NoHost;

#[async_trait]
impl Host for NoHost {
    async fn dial(&self, _: u32) -> io::Result<Box<dyn Connection>> {
        Err(io::ErrorKind::ConnectionRefused.into())
    }
}

fn id(text: &str) -> Id {
    Id::new(text.into()).unwrap()
}

fn pid(number: i32) -> Pid {
    Pid::from_raw(number).unwrap()
}

fn reaped(status: u32) -> Reaped {
    Reaped { status, unix_time_ns: 1 }
}

fn pod() -> Arc<Pod> {
    let pod = Pod::new(Box::new(NoHost)).unwrap();
    pod.table().greeted = true;
    Arc::new(pod)
}

/// A container "c" whose init is process 10, with a further process "e" as process 11.
fn pod_with_running_container() -> Arc<Pod> {
    let pod = pod();
    let mut table = pod.table();
    let mut container = Container::new(0);
    container.init = process(State::Running, Some(10));
    container.processes.insert(id("e"), process(State::Running, Some(11)));
    table.containers.insert(id("c"), container);
    table.owners.insert(pid(10), (id("c"), None));
    table.owners.insert(pid(11), (id("c"), Some(id("e"))));
    drop(table);
    pod
}

fn process(state: State, number: Option<i32>) -> Process {
    Process { state, pid: number.map(pid), uid: 0, io: None, plan: None }
}

fn exit(process_id: &str, status: u32) -> Event {
    Event::Exit { container_id: "c".into(), process_id: process_id.into(), status, unix_time_ns: 1 }
}

fn create_process(process_id: &str) -> CreateProcess {
    CreateProcess {
        container_id: id("c"),
        id: id(process_id),
        process: OciProcess::default(),
        wanted: Wanted { stdin: 0, stdout: 0, stderr: 0, terminal: false, size: None },
    }
}

async fn events(pod: &Pod, count: usize) -> Vec<Event> {
    let mut events = Vec::new();
    for _ in 0..count {
        events.push(pod.next_event().await.unwrap());
    }
    events
}

#[tokio::test]
async fn exits_of_further_processes_come_before_their_inits() {
    let pod = pod_with_running_container();
    pod.reaped(pid(10), reaped(3));
    assert_eq!(pod.table().container(&id("c")).unwrap().init.state, State::Running, "held back");
    pod.reaped(pid(11), reaped(137));
    assert_eq!(events(&pod, 2).await, [exit("e", 137), exit("", 3)]);
    assert_eq!(pod.table().container(&id("c")).unwrap().init.state, State::Stopped);
}

#[tokio::test(start_paused = true)]
async fn an_exit_is_not_held_back_for_ever() {
    let pod = pod_with_running_container();
    pod.reaped(pid(10), reaped(0));
    assert_eq!(events(&pod, 1).await, [exit("", 0)]);
}

#[tokio::test]
async fn a_process_that_ends_before_it_is_named_is_not_lost() {
    let pod = pod_with_running_container();
    pod.table().unnamed = 1;
    pod.reaped(pid(12), reaped(0));
    {
        let mut table = pod.table();
        let container = table.containers.get_mut(&id("c")).unwrap();
        container.processes.insert(id("f"), process(State::Running, Some(12)));
        pod.adopt(&mut table, pid(12), &id("c"), &Some(id("f")));
    }
    assert_eq!(events(&pod, 1).await, [exit("f", 0)]);
}

#[tokio::test]
async fn orphans_are_forgotten() {
    let pod = pod_with_running_container();
    pod.reaped(pid(99), reaped(0));
    assert!(pod.table().early.is_empty());
}

#[tokio::test]
async fn requests_before_hello_are_refused() {
    let pod = pod();
    pod.table().greeted = false;
    assert!(matches!(pod.next_event().await, Err(PodError::NotGreeted)));
    assert!(matches!(pod.pids(&id("c")), Err(PodError::NotGreeted)));
    assert!(matches!(pod.start(&id("c"), &None).await, Err(PodError::NotGreeted)));
    assert!(matches!(pod.delete(&id("c"), &None).await, Err(PodError::NotGreeted)));
}

#[tokio::test]
async fn states_refuse_what_they_do_not_allow() {
    let pod = pod_with_running_container();
    assert!(matches!(pod.start(&id("c"), &None).await, Err(PodError::Illegal(_))));
    assert!(matches!(pod.resume(&id("c")), Err(PodError::Illegal(_))));
    let running = pod.delete(&id("c"), &None).await;
    assert!(matches!(running, Err(PodError::NotDeletable { state: State::Running })));
    let running = pod.delete(&id("c"), &Some(id("e"))).await;
    assert!(matches!(running, Err(PodError::NotDeletable { state: State::Running })));
    assert!(matches!(pod.delete(&id("d"), &None).await, Err(PodError::UnknownContainer { .. })));
    let unknown = pod.delete(&id("c"), &Some(id("f"))).await;
    assert!(matches!(unknown, Err(PodError::UnknownProcess { .. })));
    let taken = pod.create_process(create_process("e")).await;
    assert!(matches!(taken, Err(PodError::ProcessExists { .. })));

    pod.table().container(&id("c")).unwrap().init.state = State::Paused;
    let paused = pod.create_process(create_process("f")).await;
    assert!(matches!(paused, Err(PodError::ContainerState { state: State::Paused, .. })));
}

#[tokio::test]
async fn a_stopped_process_can_be_deleted_and_its_id_used_again() {
    let pod = pod_with_running_container();
    pod.reaped(pid(11), reaped(0));
    pod.delete(&id("c"), &Some(id("e"))).await.unwrap();
    pod.create_process(create_process("e")).await.unwrap();
    assert!(matches!(
        pod.signal(&id("c"), &Some(id("e")), Signal::new(9).unwrap(), false),
        Err(PodError::NotStarted { state: State::Created })
    ));
}

#[tokio::test]
async fn the_caps_of_the_contract_hold() {
    let pod = pod_with_running_container();
    {
        let mut table = pod.table();
        let container = table.containers.get_mut(&id("c")).unwrap();
        for number in container.processes.len()..MAX_PROCESSES_PER_CONTAINER {
            container.processes.insert(id(&format!("p{number}")), process(State::Stopped, None));
        }
        for number in table.containers.len()..MAX_CONTAINERS {
            table.containers.insert(id(&format!("c{number}")), Container::new(1));
        }
    }
    let process = pod.create_process(create_process("f")).await;
    assert!(matches!(process, Err(PodError::TooManyProcesses)));
    let container = CreateContainer {
        id: id("new"),
        spec: Vec::new(),
        layers: Vec::new(),
        wanted: create_process("x").wanted,
        readonly_rootfs: false,
    };
    assert!(matches!(pod.create(container).await, Err(PodError::TooManyContainers)));
}

#[test]
fn an_exit_is_possible_in_every_living_state() {
    for state in [State::Creating, State::Created, State::Starting, State::Running, State::Paused] {
        assert_eq!(state.next(Change::Exit), Ok(State::Stopped));
    }
}
