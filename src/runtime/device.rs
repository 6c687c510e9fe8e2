//! Where graphs run.

use std::str::FromStr;

use crate::error::{Error, bail};

/// The device that sessions are asked to run on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    #[default]
    Cpu,
    /// The first CUDA device; an error where there is none.
    Cuda,
    /// The first CUDA device where there is one, else the processor, with a warning in the log.
    Auto,
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(s: &str) -> Result<Device, Error> {
        Ok(match s {
            "cpu" => Device::Cpu,
            "cuda" => Device::Cuda,
            "auto" => Device::Auto,
            _ => bail!(Usage, "unknown device {s:?}: use cpu, cuda or auto"),
        })
    }
}
