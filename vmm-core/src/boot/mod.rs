//! Kernel formats, boot parameters, the command line.
