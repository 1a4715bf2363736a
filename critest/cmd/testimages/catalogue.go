package main

import (
	"fmt"
	"runtime"
	"strings"

	"cricket/critest/internal/oci"
	"cricket/critest/internal/rootfs"
)

const (
	e2e     = "registry.k8s.io/e2e-test-images/"
	staging = "gcr.io/k8s-staging-cri-tools/"
	ours    = "registry.k8s.io/cricket/"
	ecr     = "public.ecr.aws/docker/library/busybox:"
)

// packages whose files end up in some image: programs first, then libraries.
var packages = []string{
	"busybox", "procps", "util-linux", "nginx",
	"libc6", "libproc2-0", "libsystemd0", "libcap2", "libgcrypt20", "libgpg-error0", "liblzma5", "libzstd1", "liblz4-1",
	"libcrypt1", "libpcre2-8-0", "libssl3", "zlib1g",
}

// shelf holds the layers that more than one image uses.
type shelf struct {
	found rootfs.Finder
	// programs are the static binaries of this module, by name.
	programs map[string]string
	busybox  *oci.Layer
}

// catalogue makes every image. The quickstart image is returned apart: it is imported from its layout and never pulled.
func catalogue(found rootfs.Finder, programs map[string]string) (images []*oci.Image, quickstart *oci.Image, err error) {
	s := &shelf{found: found, programs: programs}
	tree, err := busyboxTree(found)
	if err != nil {
		return nil, nil, err
	}
	if s.busybox, err = oci.Pack(tree, oci.Gzip); err != nil {
		return nil, nil, err
	}
	base := []*oci.Layer{s.busybox}
	images = append(images,
		&oci.Image{Names: []string{e2e + "busybox:1.29-2"}, Layers: base, Run: shell(), Format: oci.Docker, Index: true})
	for _, tag := range []string{"1.35.0-glibc", "1-uclibc", "1", "1-glibc", "1-musl"} {
		images = append(images, &oci.Image{Names: []string{ecr + tag}, Layers: base, Run: shell(), Index: true})
	}
	for _, part := range []func() ([]*oci.Image, error){s.servers, s.small, s.users, s.ours} {
		more, err := part()
		if err != nil {
			return nil, nil, err
		}
		images = append(images, more...)
	}
	quickstart = &oci.Image{Names: []string{"localhost/quickstart:latest"}, Layers: base, Run: shell()}
	return images, quickstart, nil
}

func shell() oci.Run {
	return oci.Run{Env: []string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin"}, Cmd: []string{"sh"}}
}

// with packs a tree on top of the busybox layer.
func (s *shelf) with(form oci.Compression, tree *rootfs.Tree) ([]*oci.Layer, error) {
	layer, err := oci.Pack(tree, form)
	return []*oci.Layer{s.busybox, layer}, err
}

// small are the images that the image specs pull, list and remove: the busybox layer and one marker file each. Between
// them they have every compression, and both families of media types.
func (s *shelf) small() ([]*oci.Image, error) {
	marked := []struct {
		names  []string
		form   oci.Compression
		format oci.Format
		index  bool
	}{
		{[]string{staging + "test-image-latest:latest"}, oci.Gzip, oci.OCI, true},
		{[]string{staging + "test-image-tag:test"}, oci.Gzip, oci.Docker, false},
		{[]string{staging + "test-image-tag:all"}, oci.None, oci.OCI, true},
		{[]string{staging + "test-image-1:latest"}, oci.Gzip, oci.OCI, false},
		{[]string{staging + "test-image-2:latest"}, oci.Zstd, oci.OCI, false},
		{[]string{staging + "test-image-3:latest"}, oci.None, oci.Docker, true},
		{[]string{staging + "test-image-tags:1", staging + "test-image-tags:2", staging + "test-image-tags:3"},
			oci.Gzip, oci.OCI, true},
	}
	var images []*oci.Image
	for _, m := range marked {
		tree := rootfs.New()
		tree.Text("/marker", m.names[0]+"\n")
		layers, err := s.with(m.form, tree)
		if err != nil {
			return nil, err
		}
		images = append(images, &oci.Image{Names: m.names, Layers: layers, Run: shell(), Format: m.format, Index: m.index})
	}
	pause := rootfs.New()
	if err := pause.Copy("/pause", s.programs["pause"], 0o755); err != nil {
		return nil, err
	}
	layer, err := oci.Pack(pause, oci.Gzip)
	if err != nil {
		return nil, err
	}
	// One image under two hosts.
	return append(images, &oci.Image{Names: []string{"registry.k8s.io/pause:3.9", "k8s.gcr.io/pause:3.9"},
		Layers: []*oci.Layer{layer}, Run: oci.Run{Entrypoint: []string{"/pause"}, User: "65535:65535"},
		Format: oci.Docker, Index: true}), nil
}

// users are the images whose config names a user.
func (s *shelf) users() ([]*oci.Image, error) {
	var images []*oci.Image
	for _, pair := range [][2]string{{"uid", "1002"}, {"username", "www-data"}, {"uid-group", "1003:1004"},
		{"username-group", "www-data:1004"}} {
		run := shell()
		run.User = pair[1]
		images = append(images, &oci.Image{Names: []string{staging + "test-image-user-" + pair[0] + ":latest"},
			Layers: []*oci.Layer{s.busybox}, Run: run})
	}
	groups := rootfs.New()
	groups.Text("/etc/passwd", passwd+"default-user:x:1000:1000::/home/default-user:/bin/sh\n")
	groups.Text("/etc/group", group+"default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n")
	layers, err := s.with(oci.Gzip, groups)
	if err != nil {
		return nil, err
	}
	run := shell()
	run.User = "1000"
	images = append(images, &oci.Image{Names: []string{staging + "test-image-predefined-group:latest"}, Layers: layers, Run: run})

	escalate := rootfs.New()
	if err := escalate.Copy("/nonewprivs", s.programs["nonewprivs"], 0o4755); err != nil {
		return nil, err
	}
	if layers, err = s.with(oci.Gzip, escalate); err != nil {
		return nil, err
	}
	return append(images, &oci.Image{Names: []string{e2e + "nonewprivs:1.3"}, Layers: layers,
		Run: oci.Run{Entrypoint: []string{"/nonewprivs"}}}), nil
}

// servers are the web servers: Debian's nginx twice, and busybox's httpd.
func (s *shelf) servers() ([]*oci.Image, error) {
	var images []*oci.Image
	for _, server := range []struct {
		name string
		port int
	}{{e2e + "nginx:1.14-2", 80}, {staging + "hostnet-nginx-" + runtime.GOARCH + ":latest", 12003}} {
		tree, err := nginxTree(s.found, server.port)
		if err != nil {
			return nil, err
		}
		layers, err := s.with(oci.Gzip, tree)
		if err != nil {
			return nil, err
		}
		run := oci.Run{Env: shell().Env, Entrypoint: []string{"/usr/sbin/nginx"}, Cmd: []string{"-g", "daemon off;"},
			ExposedPorts: map[string]struct{}{fmt.Sprintf("%d/tcp", server.port): {}}, StopSignal: "SIGQUIT"}
		images = append(images, &oci.Image{Names: []string{server.name}, Layers: layers, Run: run, Format: oci.Docker})
	}
	tree := rootfs.New()
	tree.Text("/www/index.html", "<html><body><h1>It works!</h1></body></html>\n")
	tree.File("/bin/serve", 0o755, []byte("#!/bin/sh\necho 'httpd: serving /www on port 80'\nexec httpd -f -v -p 80 -h /www\n"))
	layers, err := s.with(oci.Zstd, tree)
	if err != nil {
		return nil, err
	}
	return append(images, &oci.Image{Names: []string{e2e + "httpd:2.4.39-4"}, Layers: layers,
		Run: oci.Run{Env: shell().Env, Cmd: []string{"serve"}, ExposedPorts: map[string]struct{}{"80/tcp": {}}}}), nil
}

// busyboxTree follows what critest asks of its default image: applets as hard links (a mask over /bin/ls must not mask
// busybox), pgrep and ipcs beside them, which Debian's busybox lacks.
func busyboxTree(found rootfs.Finder) (*rootfs.Tree, error) {
	tree := rootfs.New()
	if err := tree.Program(found, "/bin/busybox", 0o755, "/bin/busybox", "/usr/bin/busybox"); err != nil {
		return nil, err
	}
	for name, from := range map[string]string{"/bin/pgrep": "/usr/bin/pgrep", "/bin/ipcs": "/usr/bin/ipcs"} {
		if err := tree.Program(found, name, 0o755, from); err != nil {
			return nil, err
		}
	}
	binary, err := found.Find("/bin/busybox", "/usr/bin/busybox")
	if err != nil {
		return nil, err
	}
	applets, err := output(binary, "--list")
	if err != nil {
		return nil, err
	}
	for _, applet := range strings.Fields(applets) {
		if name := "/bin/" + applet; !tree.Has(name) {
			tree.Hardlink(name, "/bin/busybox")
		}
	}
	for name, mode := range map[string]int64{"/tmp": 0o1777, "/mnt": 0o755, "/root": 0o700, "/home": 0o755, "/var/run": 0o755,
		"/var/tmp": 0o1777, "/proc": 0o555, "/sys": 0o555, "/dev": 0o755, "/usr/bin": 0o755, "/sbin": 0o755} {
		tree.Dir(name, mode)
	}
	tree.Text("/etc/passwd", passwd)
	tree.Text("/etc/group", group)
	tree.Text("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n")
	return tree, nil
}

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\nbin:x:2:2:bin:/bin:/bin/false\n" +
		"www-data:x:33:33:www-data:/var/www:/bin/false\nnobody:x:65534:65534:nobody:/home:/bin/false\n"
	group = "root:x:0:\ndaemon:x:1:\nbin:x:2:\ntty:x:5:\nwww-data:x:33:\nnogroup:x:65534:\n"
)

func nginxTree(found rootfs.Finder, port int) (*rootfs.Tree, error) {
	tree := rootfs.New()
	if err := tree.Program(found, "/usr/sbin/nginx", 0o755, "/usr/sbin/nginx"); err != nil {
		return nil, err
	}
	for _, dir := range []string{"/var/log/nginx", "/var/lib/nginx", "/var/run", "/var/cache/nginx"} {
		tree.Dir(dir, 0o755)
	}
	tree.Text("/www/index.html", "<html><body><h1>It works!</h1></body></html>\n")
	tree.Text("/etc/nginx/nginx.conf", fmt.Sprintf(`user nobody nogroup;
worker_processes 1;
pid /var/run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 64; }
http {
    access_log /dev/stdout;
    server {
        listen %d;
        root /www;
    }
}
`, port))
	return tree, nil
}
