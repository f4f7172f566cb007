//! The kernel's modules: where they are, which are needed, and in which order.

mod find;
mod folder;
mod modinfo;
mod order;

pub use find::ModuleSource;
pub(super) use find::locate;
pub(super) use folder::ModuleFolder;
pub(super) use order::{Module, Needed, in_order};
