//! Guest memory: where it is ([`layout`]) and who owns it ([`ram`]).

pub mod ram;

pub use ram::GuestRam;
