//! The container images that the suites run.
