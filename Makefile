# The front door. Everything is done by `cargo xtask` (xtask/src/main.rs lists its verbs).
.PHONY: setup build test demo bench node

setup:            ## what building and testing need, on a fresh Debian 12 (root)
	cargo xtask setup

build: setup      ## release binaries and the guest image
	cargo xtask build
	cargo xtask image

test: setup       ## every suite
	cargo xtask test

demo: setup       ## a container in its own machine, shown
	cargo xtask demo

bench: setup      ## measurements against runc and QEMU
	cargo xtask bench

# make node CMD='ctr run --rm hull.test/busybox:latest a echo hello' [CONTAINERD=1.6|2.3]
node: setup
	cargo xtask node --cmd '$(subst ','\'',$(CMD))'
