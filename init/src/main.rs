//! The first process of a guest that is there to run one command.
//!
//! It mounts the usual file systems, loads the modules that the host has chosen, makes the root asked for `/`, runs
//! the command with its output on the host's channel, and powers the guest off. What fails is told on the channel, if
//! there is one by then, and on the kernel's console.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod channel;
mod command;
mod devices;
mod error;
mod modules;
mod mounts;
mod network;
mod power;
mod root;

use std::fs;

use tripath_init::config::{CONFIG_PATH, GuestCommand, GuestConfig, SCRIPT_PATH};
use tripath_init::protocol::Message;

use channel::Channel;
use command::Program;
use error::{InitError, io};

fn main() {
    if !rustix::process::getpid().is_init() {
        eprintln!("tripath-init is the first process of a guest, and of no use as any other");
        std::process::exit(2);
    }
    // The process ends with a panic, and the kernel with its first process.
    std::panic::set_hook(Box::new(|panic| {
        eprintln!("tripath-init: {panic}");
        power::off();
    }));
    let mut channel = None;
    let last = serve(&mut channel).unwrap_or_else(|error| {
        eprintln!("tripath-init: {error}");
        Message::Refused(error.to_string())
    });
    if let Some(channel) = channel
        && let Err(error) = channel.send(&last)
    {
        eprintln!("tripath-init: the channel to the host: {error}");
    }
    power::off();
}

/// Everything up to the last message, which is left to the caller. `channel` is set as soon as there is one.
fn serve(channel: &mut Option<Channel>) -> Result<Message, InitError> {
    mounts::kernels_own()?;
    let text = fs::read(CONFIG_PATH).map_err(io("read", CONFIG_PATH))?;
    let config: GuestConfig = serde_json::from_slice(&text)?;
    // A module may fail that the channel does not need: then there is one to tell it on.
    let loaded = modules::load(&config.modules);
    let channel = match Channel::open() {
        Ok(opened) => channel.insert(opened),
        Err(error) => return Err(loaded.err().unwrap_or(error)),
    };
    loaded?;

    // Read here: the initramfs is out of reach once there is another root.
    let script = match &config.command {
        GuestCommand::Shell(_) => Vec::new(),
        GuestCommand::Script(_) => fs::read(SCRIPT_PATH).map_err(io("read", SCRIPT_PATH))?,
    };
    root::enter(&config.root)?;
    // Before the next line, which may cover the folder.
    if let Some(folder) = &config.modules_folder {
        mounts::show_modules(folder);
    }
    mounts::users()?;
    network::links_up();
    rustix::system::sethostname(b"tripath").map_err(io("set", "the host's name"))?;
    let program = Program::new(&config.command, &script)?;
    let end = command::run(&program, channel)?;
    root::leave(&config.root);
    Ok(end)
}
