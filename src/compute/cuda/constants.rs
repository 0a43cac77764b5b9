//! The numbers that launches share with their kernels, in one module for each of the kernels' files, which state them.

include!(concat!(env!("OUT_DIR"), "/constants.rs"));
