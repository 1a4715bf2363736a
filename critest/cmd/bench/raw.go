package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// raw runs the OCI runtime by hand on the bundle that the daemon wrote for a running container.
type raw struct {
	program, root, bundles string
	spec                   map[string]any
	cgroup                 string
}

// newRaw takes the template's bundle: its namespaces, mounts and unpacked image are there as long as the template runs.
func newRaw(n *node, template *pod) (*raw, error) {
	bundle := filepath.Join(n.state, "k8s.io", template.container)
	text, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, err
	}
	r := &raw{program: n.options.runtime, root: filepath.Join(n.scratch, "raw"), bundles: filepath.Join(n.scratch, "bundles")}
	if err := json.Unmarshal(text, &r.spec); err != nil {
		return nil, fmt.Errorf("%s: %w", bundle, err)
	}
	root, ok := r.spec["root"].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s: no root", bundle)
	}
	if path, _ := root["path"].(string); !filepath.IsAbs(path) {
		root["path"] = filepath.Join(bundle, path)
	}
	linux, ok := r.spec["linux"].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("%s: no linux", bundle)
	}
	path, _ := linux["cgroupsPath"].(string)
	r.cgroup = filepath.Dir(path)
	return r, nil
}

func (r *raw) bundle(id string) (string, error) {
	dir := filepath.Join(r.bundles, id)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	linux := r.spec["linux"].(map[string]any) // newRaw saw it
	linux["cgroupsPath"] = filepath.Join(r.cgroup, id)
	text, err := json.Marshal(r.spec)
	if err != nil {
		return "", err
	}
	return dir, os.WriteFile(filepath.Join(dir, "config.json"), text, 0o644)
}

// run starts the runtime with files for its output: the container inherits them, and a pipe would be waited for.
func (r *raw) run(args ...string) error {
	log, err := os.Create(filepath.Join(r.bundles, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	command := exec.Command(r.program, append([]string{"--root", r.root}, args...)...)
	command.Stdout, command.Stderr = log, log
	if err := command.Run(); err != nil {
		text, _ := os.ReadFile(log.Name())
		return fmt.Errorf("%s %s: %w: %s", r.program, strings.Join(args, " "), err, bytes.TrimSpace(text))
	}
	return nil
}

func (r *raw) up(id string) error {
	dir, err := r.bundle(id)
	if err != nil {
		return err
	}
	if err := r.run("create", "--bundle", dir, id); err != nil {
		return err
	}
	return r.run("start", id)
}

func (r *raw) exec(id string) error { return r.run("exec", id, "true") }

func (r *raw) down(id string) error {
	if err := r.run("kill", id, "KILL"); err != nil {
		return err
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		err := r.run("delete", id)
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// pss reads the proportional set size of processes, in KiB.
func pss(pids ...int) (sizes [2]int, err error) {
	for i, pid := range pids {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		if err != nil {
			return sizes, err
		}
		for _, line := range strings.Split(string(text), "\n") {
			if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "Pss:" {
				if sizes[i], err = strconv.Atoi(fields[1]); err != nil {
					return sizes, err
				}
			}
		}
	}
	return sizes, nil
}
