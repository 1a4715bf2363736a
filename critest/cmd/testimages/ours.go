package main

import (
	"archive/tar"
	"time"

	"cricket/critest/internal/oci"
	"cricket/critest/internal/rootfs"
)

// ours are images that critest does not know: they hold what an unpacker may get wrong.
func (s *shelf) ours() ([]*oci.Image, error) {
	lower, upper := layerTrees()
	below, err := oci.Pack(lower, oci.Zstd)
	if err != nil {
		return nil, err
	}
	above, err := oci.Pack(upper, oci.None)
	if err != nil {
		return nil, err
	}
	everything := oci.Run{
		User: "33:33", Env: []string{"PATH=/bin", "FROM_IMAGE=yes", "BOTH=image"}, Entrypoint: []string{"sh", "-c"},
		Cmd: []string{"id -u; pwd; echo $FROM_IMAGE $BOTH"}, WorkingDir: "/made/by/runtime", StopSignal: "SIGUSR1",
		Volumes: map[string]struct{}{"/volume": {}}, ExposedPorts: map[string]struct{}{"53/udp": {}},
		Labels: map[string]string{"org.example.label": "value"},
	}
	return []*oci.Image{
		{Names: []string{ours + "layers:1"}, Layers: []*oci.Layer{s.busybox, below, above}, Run: shell()},
		{Names: []string{ours + "config:1"}, Layers: []*oci.Layer{s.busybox}, Run: everything},
	}, nil
}

// layerTrees are two layers with one of everything: the upper one hides, replaces and re-opens what the lower one has.
func layerTrees() (lower, upper *rootfs.Tree) {
	lower, upper = rootfs.New(), rootfs.New()
	lower.Text("/data/gone", "hidden by a whiteout\n")
	lower.Text("/data/gone-dir/file", "hidden with its folder\n")
	lower.Text("/data/opaque/old", "hidden by an opaque folder\n")
	lower.Text("/data/was-dir/file", "replaced by a file\n")
	lower.Text("/data/was-file", "replaced by a folder\n")
	lower.Text("/data/kept", "kept\n")
	lower.Text("/data/linked", "two names\n")
	lower.Hardlink("/data/other-name", "/data/linked")
	lower.Symlink("/data/absolute", "/data/kept")
	lower.Symlink("/data/dangling", "/nowhere/at/all")
	lower.Dir("/data/sticky", 0o1777)
	lower.File("/data/setuid", 0o4755, []byte("#!/bin/sh\n"))
	lower.File("/data/setgid", 0o2755, []byte("#!/bin/sh\n"))
	lower.File("/data/unreadable", 0, []byte("secret\n"))
	lower.Put(tar.Header{Typeflag: tar.TypeReg, Name: "/data/owned", Mode: 0o640, Uid: 1234, Gid: 2345}, []byte("owned\n"))
	lower.Put(tar.Header{Typeflag: tar.TypeReg, Name: "/data/old", Mode: 0o644,
		ModTime: time.Date(2001, time.September, 9, 1, 46, 40, 123456789, time.UTC)}, []byte("old\n"))
	lower.Put(tar.Header{Typeflag: tar.TypeReg, Name: "/data/xattr", Mode: 0o644,
		PAXRecords: map[string]string{"SCHILY.xattr.user.cricket": "value"}}, []byte("xattr\n"))
	lower.Put(tar.Header{Typeflag: tar.TypeReg, Name: "/data/capable", Mode: 0o755,
		// cap_net_raw=ep, revision 2.
		PAXRecords: map[string]string{"SCHILY.xattr.security.capability": "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00" +
			"\x00\x00\x00\x00\x00\x00\x00\x00"}}, []byte("#!/bin/sh\n"))
	lower.Put(tar.Header{Typeflag: tar.TypeChar, Name: "/data/null", Mode: 0o666, Devmajor: 1, Devminor: 3}, nil)
	lower.Put(tar.Header{Typeflag: tar.TypeFifo, Name: "/data/fifo", Mode: 0o600}, nil)
	lower.Text("/data/größe", "not ASCII\n")

	upper.Text("/data/.wh.gone", "")
	upper.Text("/data/.wh.gone-dir", "")
	upper.Text("/data/opaque/.wh..wh..opq", "")
	upper.Text("/data/opaque/new", "new\n")
	upper.Text("/data/was-dir", "a file now\n")
	upper.Text("/data/was-file/file", "a folder now\n")
	return lower, upper
}
