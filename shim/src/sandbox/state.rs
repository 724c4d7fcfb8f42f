//! The pod's own state: whether it has a machine.
//!
//! ```text
//!            first Create           agent said hello          machine exited
//!   New ------------------> Booting ----------------> Ready ----------------> Dead
//!    ^                         |                        |                       |
//!    +-------------------------+                        | end                   | end
//!           boot failed        |  end                   v                       v
//!                              +--------------------> Ending <------------------+--- (New: end)
//! ```
//! Only the actor moves it. Containers have states of their own (`process.rs`).

/// Where the pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// No machine, and none on its way.
    New,
    /// The machine is starting.
    Booting,
    /// The agent answers.
    Ready,
    /// The machine is gone; what it ran has exited.
    Dead,
    /// The pod is being torn down. Final.
    Ending,
}

/// What can happen to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A container is to be created and there is no machine.
    BootBegun,
    /// The agent has said hello.
    Booted,
    /// The machine did not come up.
    BootFailed,
    /// The machine has exited.
    MachineExited,
    /// Shutdown, a signal, or nobody needs the pod.
    End,
}

/// The event cannot happen in this phase.
#[derive(Debug, PartialEq, Eq)]
pub struct Illegal;

impl Phase {
    /// The phase after an event.
    ///
    /// # Errors
    /// [`Illegal`].
    pub fn next(self, event: Event) -> Result<Phase, Illegal> {
        match (self, event) {
            (Phase::New, Event::BootBegun) => Ok(Phase::Booting),
            (Phase::Booting, Event::Booted) => Ok(Phase::Ready),
            (Phase::Booting, Event::BootFailed) => Ok(Phase::New),
            (Phase::Ready, Event::MachineExited) => Ok(Phase::Dead),
            (Phase::New | Phase::Booting | Phase::Ready | Phase::Dead, Event::End) => Ok(Phase::Ending),
            _ => Err(Illegal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_phase_and_event() {
        use Event::*;
        use Phase::*;
        let legal = [
            (New, BootBegun, Booting),
            (Booting, Booted, Ready),
            (Booting, BootFailed, New),
            (Ready, MachineExited, Dead),
            (New, End, Ending),
            (Booting, End, Ending),
            (Ready, End, Ending),
            (Dead, End, Ending),
        ];
        for phase in [New, Booting, Ready, Dead, Ending] {
            for event in [BootBegun, Booted, BootFailed, MachineExited, End] {
                let expected = legal.iter().find(|row| row.0 == phase && row.1 == event).map(|row| row.2);
                assert_eq!(phase.next(event).ok(), expected, "{phase:?} {event:?}");
            }
        }
    }
}
