//! Orders, races and failures over a pod's life.

use ttrpc::Code;

use super::*;

#[tokio::test]
async fn one_life_in_order() {
    let mut bench = Bench::new();
    bench.create("c").await.unwrap();
    bench.start("c", "").await.unwrap();
    bench.exec("c", "e").await.unwrap();
    bench.start("c", "e").await.unwrap();
    bench.exit("c", "e", 1).await;
    bench.delete("c", "e").await.unwrap();
    bench.exit("c", "", 3).await;
    let exit = bench.delete("c", "").await.unwrap();
    assert_eq!(exit.status, 3);
    let expected = ["create", "start", "exec-added", "exec-started", "exit", "exit", "delete"];
    assert_eq!(bench.topics().await, expected);
    bench.until_called("delete c/").await;
    let calls = bench.agent.calls();
    assert_eq!(calls, ["create c", "start c/", "exec c/e", "start c/e", "delete c/e", "delete c/"]);
    tokio::task::yield_now().await;
    assert!(bench.machine.mapped.lock().unwrap().is_empty());
    let plan = bench.boots.plans.lock().unwrap()[0].clone();
    assert_eq!((plan.hello.pod_id.as_str(), plan.hello.hostname.as_str()), ("pod", "h"));
}

#[tokio::test]
async fn an_exit_before_the_answer_to_start_is_told_after_it() {
    let mut bench = Bench::new();
    bench.create("c").await.unwrap();
    let gate = bench.agent.gate("start");
    let (start, exit, ()) = tokio::join!(bench.start("c", ""), bench.wait("c", ""), async {
        bench.until_called("start c/").await;
        bench.report_exit("c", "", 5).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(bench.state("c", "").await.unwrap(), State::Starting);
        gate.add_permits(1);
    });
    start.unwrap();
    assert_eq!(exit.unwrap().status, 5);
    assert_eq!(bench.topics().await, ["create", "start", "exit"]);
}

#[tokio::test]
async fn a_kill_during_start_is_delivered_after_it() {
    let bench = Bench::new();
    bench.create("c").await.unwrap();
    let gate = bench.agent.gate("start");
    let (start, kill, ()) = tokio::join!(bench.start("c", ""), bench.kill("c", ""), async {
        bench.until_called("start c/").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        gate.add_permits(1);
    });
    start.unwrap();
    kill.unwrap();
    assert_eq!(bench.agent.calls()[1..], ["start c/", "signal c/ 9 false"]);
}

#[tokio::test]
async fn a_failed_start_leaves_a_task_that_can_be_deleted() {
    let mut bench = Bench::new();
    bench.create("c").await.unwrap();
    bench.agent.refuse("start", Code::INTERNAL, "exec format error");
    let error = bench.start("c", "").await.unwrap_err();
    assert_eq!((error.code(), error.to_string()), (Code::INTERNAL, "exec format error".to_owned()));
    assert_eq!(bench.wait("c", "").await.unwrap().status, 255);
    bench.delete("c", "").await.unwrap();
    assert_eq!(bench.topics().await, ["create", "delete"]);
}

#[tokio::test]
async fn a_failed_create_leaves_nothing() {
    let mut bench = Bench::new();
    bench.agent.refuse("create", Code::INVALID_ARGUMENT, "no such file: /bin/x");
    let error = bench.create("c").await.unwrap_err();
    assert_eq!((error.code(), error.to_string().as_str()), (Code::INVALID_ARGUMENT, "no such file: /bin/x"));
    assert!(bench.machine.mapped.lock().unwrap().is_empty());
    assert_eq!(bench.state("c", "").await.unwrap_err().code(), Code::NOT_FOUND);
    assert!(bench.topics().await.is_empty());
    // A second attempt with the same id starts clean.
    bench.agent.refusals.lock().unwrap().clear();
    bench.create("c").await.unwrap();
}

#[tokio::test]
async fn an_image_that_cannot_be_made_is_no_task() {
    let bench = Bench::new();
    let task = CreateTask { rootfs: Vec::new(), ..bench.task("c") };
    let error = bench.pod.ask(|reply| Command::Create(task, reply)).await.unwrap_err();
    assert_eq!(error.code(), Code::INVALID_ARGUMENT);
    assert!(bench.agent.calls().is_empty());
}

#[tokio::test]
async fn a_machine_that_does_not_start_can_be_tried_again() {
    let bench = Bench::new();
    bench.boots.failures.store(1, Ordering::Relaxed);
    let error = crate::error::chain(&bench.create("c").await.unwrap_err());
    assert!(error.contains("did not start") && error.contains("did not call within 1 s"), "{error}");
    bench.create("c").await.unwrap();
    assert_eq!(bench.boots.plans.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_second_container_joins_the_machine() {
    let mut bench = Bench::new();
    let (first, second) = tokio::join!(bench.create("a"), bench.create("b"));
    first.unwrap();
    second.unwrap();
    bench.create("c").await.unwrap();
    assert_eq!(bench.boots.plans.lock().unwrap().len(), 1);
    assert_eq!(bench.machine.mapped.lock().unwrap().len(), 3);
    // The machine stays while one of them is there.
    bench.delete("a", "").await.unwrap();
    bench.pod.ask(|reply| Command::Shutdown(false, reply)).await.unwrap();
    assert!(bench.over.try_recv().is_err());
    bench.delete("b", "").await.unwrap();
    bench.delete("c", "").await.unwrap();
    bench.pod.ask(|reply| Command::Shutdown(false, reply)).await.unwrap();
    assert!((&mut bench.over).await.unwrap().guest.is_some(), "somebody must stop the machine");
}

#[tokio::test]
async fn the_machines_death_ends_everything_in_order() {
    let mut bench = Bench::new();
    bench.create("c").await.unwrap();
    bench.start("c", "").await.unwrap();
    bench.exec("c", "e").await.unwrap();
    bench.start("c", "e").await.unwrap();
    bench.topics().await;
    let (init, exec, ()) = tokio::join!(bench.wait("c", ""), bench.wait("c", "e"), async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        bench.die();
    });
    assert_eq!((init.unwrap().status, exec.unwrap().status), (137, 137));
    let mut ids = Vec::new();
    while let Ok(event) = bench.events.try_recv() {
        ids.push(format!("{event:?}").contains("[10, 1, 99, 18, 1, 101"));
    }
    assert_eq!(ids, [true, false], "the exec's exit first");
    assert_eq!(bench.create("d").await.unwrap_err().code(), Code::UNAVAILABLE);
    bench.delete("c", "").await.unwrap();
}

#[tokio::test]
async fn calls_under_way_end_with_the_machine() {
    let bench = Bench::new();
    bench.create("c").await.unwrap();
    bench.agent.gate("start");
    let (start, exit, ()) = tokio::join!(bench.start("c", ""), bench.wait("c", ""), async {
        bench.until_called("start c/").await;
        bench.die();
    });
    assert_eq!(start.unwrap_err().code(), Code::UNAVAILABLE);
    assert_eq!(exit.unwrap().status, 137);
}

#[tokio::test]
async fn delete_of_a_task_under_creation_waits_and_shutdown_does_not() {
    let mut bench = Bench::new();
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    *bench.boots.gate.lock().unwrap() = Some(gate.clone());
    let (create, delete, shutdown) = tokio::join!(bench.create("c"), bench.delete("c", ""), async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        bench.pod.ask(|reply| Command::Shutdown(false, reply)).await
    });
    shutdown.unwrap();
    assert_eq!(create.unwrap_err().code(), Code::UNAVAILABLE);
    assert_eq!(delete.unwrap_err().code(), Code::UNAVAILABLE);
    (&mut bench.over).await.unwrap();
}

#[tokio::test]
async fn a_deleted_created_task_wakes_who_waits() {
    let bench = Bench::new();
    bench.create("c").await.unwrap();
    let (exit, deleted) = tokio::join!(bench.wait("c", ""), bench.delete("c", ""));
    assert_eq!(exit.unwrap(), deleted.unwrap());
}

#[tokio::test]
async fn out_of_memory_is_told_before_the_exit() {
    let mut bench = Bench::new();
    bench.create("c").await.unwrap();
    bench.start("c", "").await.unwrap();
    bench.guest_events.send(AgentEvent::Oom { container: "c".to_owned() }).await.unwrap();
    bench.exit("c", "", 137).await;
    assert_eq!(bench.topics().await, ["create", "start", "oom", "exit"]);
}

#[tokio::test]
async fn pause_and_resume_are_told() {
    let mut bench = Bench::new();
    bench.create("c").await.unwrap();
    bench.start("c", "").await.unwrap();
    bench.pod.ask(|reply| Command::Pause("c".to_owned(), reply)).await.unwrap();
    assert_eq!(bench.state("c", "").await.unwrap(), State::Paused);
    bench.pod.ask(|reply| Command::Resume("c".to_owned(), reply)).await.unwrap();
    assert_eq!(bench.state("c", "").await.unwrap(), State::Running);
    assert_eq!(bench.topics().await, ["create", "start", "paused", "resumed"]);
}

#[tokio::test]
async fn unneeded_pods_end_by_themselves() {
    let timeouts = r#"{"unused_s":0,"idle_s":0,"drain_s":0}"#;
    let timeouts = serde_json::from_str(timeouts).unwrap();
    let mut bench = Bench::with(Config { timeouts, ..Config::default() });
    tokio::time::timeout(Duration::from_secs(5), &mut bench.over).await.unwrap().unwrap();
    assert_eq!(bench.create("c").await.unwrap_err().code(), Code::UNAVAILABLE);

    let timeouts = serde_json::from_str(r#"{"unused_s":60,"idle_s":0,"drain_s":0}"#).unwrap();
    let mut bench = Bench::with(Config { timeouts, ..Config::default() });
    bench.create("c").await.unwrap();
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(bench.over.try_recv().is_err());
    bench.delete("c", "").await.unwrap();
    let remains = tokio::time::timeout(Duration::from_secs(5), &mut bench.over).await.unwrap().unwrap();
    assert!(remains.guest.is_some());
}

#[tokio::test]
async fn delete_does_not_wait_for_the_guest_but_the_same_id_does() {
    let mut bench = Bench::new();
    bench.create("c").await.unwrap();
    let gate = bench.agent.gate("delete");
    bench.delete("c", "").await.unwrap();
    assert_eq!(bench.topics().await, ["create", "delete"]);
    assert_eq!(bench.state("c", "").await.unwrap_err().code(), Code::NOT_FOUND);
    assert_eq!(bench.delete("c", "").await.unwrap_err().code(), Code::NOT_FOUND);
    assert_eq!(bench.machine.mapped.lock().unwrap().len(), 1);
    let again = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!(bench.agent.calls(), ["create c", "delete c/"]);
        gate.add_permits(1);
    };
    let (created, ()) = tokio::join!(bench.create("c"), again);
    created.unwrap();
    assert_eq!(bench.agent.calls(), ["create c", "delete c/", "create c"]);
    assert_eq!(bench.state("c", "").await.unwrap(), State::Created);
}

#[tokio::test]
async fn a_pod_whose_guest_still_cleans_up_can_be_shut_down() {
    let mut bench = Bench::new();
    bench.create("c").await.unwrap();
    bench.agent.gate("delete");
    bench.delete("c", "").await.unwrap();
    bench.pod.ask(|reply| Command::Shutdown(false, reply)).await.unwrap();
    assert!((&mut bench.over).await.unwrap().guest.is_some());
}

#[tokio::test]
async fn ending_a_pod_tells_the_exits() {
    let mut bench = Bench::new();
    bench.create("c").await.unwrap();
    bench.start("c", "").await.unwrap();
    let (exit, ()) = tokio::join!(bench.wait("c", ""), async {
        tokio::time::sleep(Duration::from_millis(10)).await;
        bench.pod.end().await;
    });
    assert_eq!(exit.unwrap().status, 137);
    assert_eq!(bench.topics().await, ["create", "start", "exit"]);
}

#[tokio::test]
async fn wrong_bundles_are_refused_before_anything_is_acquired() {
    let bench = Bench::new();
    std::fs::remove_file(bench.dir.join("config.json")).unwrap();
    let error = bench.create("c").await.unwrap_err();
    assert!(crate::error::chain(&error).contains("config.json"));
    assert_eq!(bench.create("no/id").await.unwrap_err().code(), Code::INVALID_ARGUMENT);
    assert!(bench.boots.plans.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_empty_pod_that_nobody_is_connected_to_ends() {
    let mut bench = Bench::new();
    bench.create("c").await.unwrap();
    bench.connections.send_replace(0);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(bench.over.try_recv().is_err(), "containerd is away, but there is a task");
    bench.connections.send_replace(1);
    bench.delete("c", "").await.unwrap();
    bench.connections.send_replace(0);
    let begun = tokio::time::Instant::now();
    (&mut bench.over).await.unwrap();
    assert!(begun.elapsed() < Duration::from_secs(6));
}
