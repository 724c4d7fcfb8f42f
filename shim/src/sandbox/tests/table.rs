//! All methods of the task service in all states of a task, by their gRPC codes.

use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::Task;
use protobuf::MessageField;
use ttrpc::Code;
use ttrpc::r#async::TtrpcContext;

use super::*;
use crate::task::TaskService;

/// States of a task, "machine dead" among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Situation {
    Created,
    Running,
    Paused,
    Stopped,
    Gone,
    Unknown,
    MachineDead,
}

const SITUATIONS: [Situation; 7] = [
    Situation::Created,
    Situation::Running,
    Situation::Paused,
    Situation::Stopped,
    Situation::Gone,
    Situation::Unknown,
    Situation::MachineDead,
];

const METHODS: [&str; 17] = [
    "State",
    "Create",
    "Start",
    "Delete",
    "Pids",
    "Pause",
    "Resume",
    "Checkpoint",
    "Kill",
    "Exec",
    "ResizePty",
    "CloseIO",
    "Update",
    "Wait",
    "Stats",
    "Connect",
    "Shutdown",
];

/// `None`: the call waits, as Wait must.
type Answer = Option<Code>;

const OK: Answer = Some(Code::OK);
const GONE: Answer = Some(Code::NOT_FOUND);
const WRONG: Answer = Some(Code::FAILED_PRECONDITION);
const TAKEN: Answer = Some(Code::ALREADY_EXISTS);
const NEVER: Answer = Some(Code::UNIMPLEMENTED);
const WAITS: Answer = None;

/// Columns as in SITUATIONS. Create in Gone and Unknown makes a new task.
#[rustfmt::skip]
const TABLE: [(&str, [Answer; 7]); 17] = [
    //             created running paused  stopped gone   unknown dead
    ("State",      [OK,    OK,     OK,     OK,     GONE,  GONE,   OK]),
    ("Create",     [TAKEN, TAKEN,  TAKEN,  TAKEN,  OK,    OK,     TAKEN]),
    ("Start",      [OK,    WRONG,  WRONG,  WRONG,  GONE,  GONE,   WRONG]),
    ("Delete",     [OK,    WRONG,  WRONG,  OK,     GONE,  GONE,   OK]),
    ("Pids",       [OK,    OK,     OK,     OK,     GONE,  GONE,   OK]),
    ("Pause",      [WRONG, OK,     WRONG,  WRONG,  GONE,  GONE,   WRONG]),
    ("Resume",     [WRONG, WRONG,  OK,     WRONG,  GONE,  GONE,   WRONG]),
    ("Checkpoint", [NEVER, NEVER,  NEVER,  NEVER,  GONE,  GONE,   NEVER]),
    ("Kill",       [OK,    OK,     OK,     GONE,   GONE,  GONE,   GONE]),
    ("Exec",       [OK,    OK,     WRONG,  WRONG,  GONE,  GONE,   WRONG]),
    ("ResizePty",  [OK,    OK,     OK,     WRONG,  GONE,  GONE,   WRONG]),
    ("CloseIO",    [OK,    OK,     OK,     OK,     GONE,  GONE,   OK]),
    ("Update",     [OK,    OK,     OK,     WRONG,  GONE,  GONE,   WRONG]),
    ("Wait",       [WAITS, WAITS,  WAITS,  OK,     GONE,  GONE,   OK]),
    ("Stats",      [OK,    OK,     OK,     WRONG,  GONE,  GONE,   WRONG]),
    ("Connect",    [OK,    OK,     OK,     OK,     GONE,  GONE,   OK]),
    ("Shutdown",   [OK,    OK,     OK,     OK,     OK,    OK,     OK]),
];

async fn prepared(situation: Situation) -> Bench {
    let bench = Bench::new();
    // Another task keeps the machine there in every situation.
    bench.create("other").await.unwrap();
    if situation == Situation::Unknown {
        return bench;
    }
    bench.create("c").await.unwrap();
    if situation == Situation::Created {
        return bench;
    }
    bench.start("c", "").await.unwrap();
    match situation {
        Situation::Paused => {
            bench.pod.ask(|reply| Command::Pause("c".to_owned(), reply)).await.unwrap();
        }
        Situation::Stopped => bench.exit("c", "", 0).await,
        Situation::Gone => {
            bench.exit("c", "", 0).await;
            bench.delete("c", "").await.unwrap();
        }
        Situation::MachineDead => {
            bench.die();
            assert_eq!(bench.wait("c", "").await.unwrap().status, 137);
        }
        _ => {}
    }
    bench
}

fn any(text: &str) -> MessageField<Any> {
    MessageField::some(Any { value: text.into(), ..Any::new() })
}

fn code<T>(result: ttrpc::Result<T>) -> Code {
    match result {
        Ok(_) => Code::OK,
        Err(ttrpc::Error::RpcStatus(status)) => status.code(),
        Err(error) => panic!("an error without a code: {error}"),
    }
}

async fn call(bench: &Bench, method: &str) -> Code {
    let service = TaskService::new(bench.pod.clone());
    let context = TtrpcContext::default();
    let id = || "c".to_owned();
    match method {
        "State" => code(service.state(&context, api::StateRequest { id: id(), ..Default::default() }).await),
        "Create" => {
            let task = bench.task("c");
            let request = api::CreateTaskRequest {
                id: task.id,
                bundle: task.bundle,
                rootfs: task.rootfs,
                ..Default::default()
            };
            code(service.create(&context, request).await)
        }
        "Start" => code(service.start(&context, api::StartRequest { id: id(), ..Default::default() }).await),
        "Delete" => {
            code(service.delete(&context, api::DeleteRequest { id: id(), ..Default::default() }).await)
        }
        "Pids" => {
            let pids = service.pids(&context, api::PidsRequest { id: id(), ..Default::default() }).await;
            // containerd takes an empty list for a leaked shim.
            assert!(
                pids.as_ref().map_or(true, |pids| pids.processes.len() == 1 && pids.processes[0].pid == 4711)
            );
            code(pids)
        }
        "Pause" => code(service.pause(&context, api::PauseRequest { id: id(), ..Default::default() }).await),
        "Resume" => {
            code(service.resume(&context, api::ResumeRequest { id: id(), ..Default::default() }).await)
        }
        "Checkpoint" => {
            let request = api::CheckpointTaskRequest { id: id(), ..Default::default() };
            code(service.checkpoint(&context, request).await)
        }
        "Kill" => {
            let request = api::KillRequest { id: id(), signal: 15, ..Default::default() };
            code(service.kill(&context, request).await)
        }
        "Exec" => {
            let request = api::ExecProcessRequest {
                id: id(),
                exec_id: "e".to_owned(),
                spec: any("{}"),
                ..Default::default()
            };
            code(service.exec(&context, request).await)
        }
        "ResizePty" => {
            let request = api::ResizePtyRequest { id: id(), width: 80, height: 24, ..Default::default() };
            code(service.resize_pty(&context, request).await)
        }
        "CloseIO" => {
            let request = api::CloseIORequest { id: id(), stdin: true, ..Default::default() };
            code(service.close_io(&context, request).await)
        }
        "Update" => {
            let request = api::UpdateTaskRequest { id: id(), resources: any("{}"), ..Default::default() };
            code(service.update(&context, request).await)
        }
        "Wait" => code(service.wait(&context, api::WaitRequest { id: id(), ..Default::default() }).await),
        "Stats" => code(service.stats(&context, api::StatsRequest { id: id(), ..Default::default() }).await),
        "Connect" => {
            code(service.connect(&context, api::ConnectRequest { id: id(), ..Default::default() }).await)
        }
        "Shutdown" => {
            code(service.shutdown(&context, api::ShutdownRequest { id: id(), ..Default::default() }).await)
        }
        other => panic!("{other} is no method"),
    }
}

#[tokio::test]
async fn methods_and_states() {
    assert_eq!(TABLE.map(|row| row.0), METHODS);
    for (method, answers) in TABLE {
        for (situation, expected) in SITUATIONS.into_iter().zip(answers) {
            let mut bench = prepared(situation).await;
            let answer = tokio::time::timeout(Duration::from_millis(200), call(&bench, method)).await.ok();
            assert_eq!(answer, expected, "{method} in {situation:?}");
            // A pod with tasks in it survives every one of them, Shutdown too.
            assert!(bench.over.try_recv().is_err(), "{method} in {situation:?} ended the pod");
        }
    }
}

/// What differs for a further process.
#[tokio::test]
async fn further_processes() {
    let bench = Bench::new();
    bench.create("c").await.unwrap();
    bench.start("c", "").await.unwrap();
    let code = |result: Result<()>| result.map_or_else(|error| error.code(), |()| Code::OK);
    assert_eq!(code(bench.start("c", "e").await), Code::NOT_FOUND);
    assert_eq!(code(bench.exec("c", "e").await), Code::OK);
    assert_eq!(code(bench.exec("c", "e").await), Code::ALREADY_EXISTS);
    assert_eq!(code(bench.exec("c", "../e").await), Code::INVALID_ARGUMENT);
    assert_eq!(code(bench.kill("c", "e").await), Code::FAILED_PRECONDITION);
    assert_eq!(code(bench.start("c", "e").await), Code::OK);
    assert_eq!(code(bench.kill("c", "e").await), Code::OK);
    assert_eq!(code(bench.delete("c", "e").await.map(drop)), Code::FAILED_PRECONDITION);
    bench.exit("c", "e", 7).await;
    assert_eq!(code(bench.kill("c", "e").await), Code::NOT_FOUND);
    assert_eq!(bench.delete("c", "e").await.unwrap().status, 7);
    assert_eq!(code(bench.delete("c", "e").await.map(drop)), Code::NOT_FOUND);
    // The id is free again.
    assert_eq!(code(bench.exec("c", "e").await), Code::OK);
    bench.exit("c", "", 0).await;
    assert_eq!(code(bench.start("c", "e").await), Code::FAILED_PRECONDITION);
    assert_eq!(code(bench.exec("c", "f").await), Code::FAILED_PRECONDITION);
    assert_eq!(code(bench.delete("c", "e").await.map(drop)), Code::OK);
}
