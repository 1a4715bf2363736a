// bench measures a running cricket against the raw OCI runtime, in one run and turn by turn, so that a busy machine slows
// both. It wants the daemon's mount namespace (tests/bench.sh has it) and prints a table.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type options struct {
	socket, state, image, runtime, handler string
	rounds, pods                           int
	daemon, keeper                         int
	network                                string
	standing                               int
}

func main() {
	var o options
	flag.StringVar(&o.socket, "socket", "", "the daemon's socket")
	flag.StringVar(&o.state, "state", "", "the daemon's state folder")
	flag.StringVar(&o.image, "image", "registry.k8s.io/e2e-test-images/busybox:1.29-2", "an image with a shell, present")
	flag.StringVar(&o.runtime, "runtime", "crun", "the raw runtime's program")
	flag.StringVar(&o.handler, "handler", "crun", "the handler to measure")
	flag.IntVar(&o.rounds, "rounds", 50, "measured rounds")
	flag.IntVar(&o.pods, "pods", 50, "pods of the memory measurement")
	flag.IntVar(&o.daemon, "daemon", 0, "the daemon's pid")
	flag.IntVar(&o.keeper, "keeper", 0, "the keeper's pid")
	flag.StringVar(&o.network, "network", "", "measure pods' networks only; the mode, for the table")
	flag.IntVar(&o.standing, "standing", 500, "pods of the full node, when networks are measured")
	flag.Parse()
	if err := run(&o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// node is the measured daemon.
type node struct {
	*options
	runtime cri.RuntimeServiceClient
	scratch string
}

// pod is one running pod with one container.
type pod struct {
	id, container string
	config        *cri.PodSandboxConfig
}

func run(o *options) error {
	connection, err := grpc.NewClient("unix://"+o.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer connection.Close()
	scratch, err := os.MkdirTemp("", "cricket-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	n := &node{options: o, runtime: cri.NewRuntimeServiceClient(connection), scratch: scratch}
	if o.network != "" {
		fmt.Printf("Network %q beside the host's, %d rounds\n", o.network, o.rounds)
		fmt.Printf("  %-34s %9s %9s %9s %9s %9s\n", "ms", "p50", "p90", "host p50", "host p90", "more p50")
		return n.networks()
	}
	if err := n.memory(); err != nil {
		return fmt.Errorf("memory: %w", err)
	}
	return n.latency()
}

func (n *node) up(name string) (*pod, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	options := &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER}
	p := &pod{config: &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
		LogDirectory: filepath.Join(n.scratch, "logs", name),
		Linux:        &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: options}},
	}}
	ran, err := n.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: p.config, RuntimeHandler: n.handler})
	if err != nil {
		return nil, err
	}
	p.id = ran.PodSandboxId
	created, err := n.runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "main"}, Image: &cri.ImageSpec{Image: n.image},
			Command: []string{"sleep", "100000"}, LogPath: "main.log",
			Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: options}},
		}})
	if err != nil {
		return nil, err
	}
	p.container = created.ContainerId
	_, err = n.runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: p.container})
	return p, err
}

func (n *node) down(p *pod) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if _, err := n.runtime.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: p.container, Timeout: 0}); err != nil {
		return err
	}
	if _, err := n.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		return err
	}
	_, err := n.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.id})
	return err
}

func (n *node) exec(p *pod) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	answer, err := n.runtime.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"true"}, Timeout: 60})
	if err == nil && answer.ExitCode != 0 {
		err = fmt.Errorf("exec: exit code %d: %s", answer.ExitCode, answer.Stderr)
	}
	return err
}

// memory prints what the daemon and the keeper occupy without and with pods.
func (n *node) memory() error {
	first, err := n.up("warm")
	if err != nil {
		return err
	}
	if err := n.down(first); err != nil {
		return err
	}
	empty, err := pss(n.daemon, n.keeper)
	if err != nil {
		return err
	}
	var pods []*pod
	for i := range n.pods {
		p, err := n.up(fmt.Sprintf("memory-%d", i))
		if err != nil {
			return err
		}
		pods = append(pods, p)
	}
	full, err := pss(n.daemon, n.keeper)
	if err != nil {
		return err
	}
	for _, p := range pods {
		if err := n.down(p); err != nil {
			return err
		}
	}
	after, err := pss(n.daemon, n.keeper)
	if err != nil {
		return err
	}
	mib := func(kib int) float64 { return float64(kib) / 1024 }
	fmt.Printf("PSS of daemon and keeper\n")
	fmt.Printf("  %-26s %8s %8s %8s\n", "MiB", "daemon", "keeper", "both")
	for _, row := range []struct {
		name string
		both [2]int
	}{{"0 pods", empty}, {fmt.Sprintf("%d pods", n.pods), full}, {"0 pods again", after}} {
		fmt.Printf("  %-26s %8.2f %8.2f %8.2f\n", row.name, mib(row.both[0]), mib(row.both[1]), mib(row.both[0]+row.both[1]))
	}
	each := mib(full[0]+full[1]-empty[0]-empty[1]) / float64(n.pods)
	fmt.Printf("  %-26s %26.3f\n\n", "each pod more", each)
	return nil
}

// settle is the pause before each measurement. Moving a process into a cgroup waits for an RCU grace period (10 to 20 ms on
// a small machine), unless one was moved a moment ago: without the pause, whoever comes second is let off.
const settle = 60 * time.Millisecond

// latency prints how long the daemon takes, beside the raw runtime on the same bundle.
func (n *node) latency() error {
	template, err := n.up("template")
	if err != nil {
		return err
	}
	raw, err := newRaw(n, template)
	if err != nil {
		return errors.Join(err, n.down(template))
	}
	var ours, theirs [3][]time.Duration
	timed := func(into *[]time.Duration, measured bool, work func() error) error {
		start := time.Now()
		err := work()
		if measured {
			*into = append(*into, time.Since(start))
		}
		return err
	}
	for round := range n.rounds + 3 {
		// The first rounds warm caches.
		measured := round >= 3
		var p *pod
		id := fmt.Sprintf("raw-%d", round)
		type step struct {
			into *[]time.Duration
			work func() error
		}
		pairs := [][2]step{
			{{&ours[0], func() (err error) { p, err = n.up(fmt.Sprintf("round-%d", round)); return err }},
				{&theirs[0], func() error { return raw.up(id) }}},
			{{&ours[1], func() error { return n.exec(p) }}, {&theirs[1], func() error { return raw.exec(id) }}},
			{{&ours[2], func() error { return n.down(p) }}, {&theirs[2], func() error { return raw.down(id) }}},
		}
		for _, pair := range pairs {
			// Turn by turn, so that neither is always the one that finds what the other has just warmed up.
			first := round % 2
			for _, step := range []step{pair[first], pair[1-first]} {
				time.Sleep(settle)
				if err := timed(step.into, measured, step.work); err != nil {
					return fmt.Errorf("round %d: %w", round, err)
				}
			}
		}
	}
	fmt.Printf("cricket (%s) beside raw %s, host network, %d rounds\n", n.handler, n.options.runtime, n.rounds)
	fmt.Printf("  %-26s %9s %9s %9s %9s %7s %7s\n", "ms", "p50", "p90", "raw p50", "raw p90", "× p50", "× p90")
	for i, name := range []string{"pod up (run,create,start)", "ExecSync of true", "pod down (stop,remove)"} {
		own, their := quantiles(ours[i]), quantiles(theirs[i])
		fmt.Printf("  %-26s %9.2f %9.2f %9.2f %9.2f %7.2f %7.2f\n", name, own[0], own[1], their[0], their[1],
			own[0]/their[0], own[1]/their[1])
	}
	return n.down(template)
}

// quantiles are p50 and p90 in milliseconds.
func quantiles(values []time.Duration) [2]float64 {
	sorted := slices.Sorted(slices.Values(values))
	at := func(q float64) float64 {
		return float64(sorted[int(q*float64(len(sorted)-1)+0.5)].Microseconds()) / 1000
	}
	return [2]float64{at(0.5), at(0.9)}
}
