//! The guest of a round, which has all devices at once. It is a process of its own ([`worker`]), which the benchmark
//! speaks with ([`handle`]) in lines of JSON ([`protocol`]).

pub mod cost;
pub mod handle;
pub mod machine;
pub mod protocol;
pub mod worker;
