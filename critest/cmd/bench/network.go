package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// atOnce pods come at the same moment, in each of burstRounds.
	atOnce      = 20
	burstRounds = 5
	// portsEach is how many host ports each of the standing pods has.
	portsEach = 4
	// firstPort is the host port of the pod that answers; the standing pods have those behind it.
	firstPort = 18080
	// connections are opened by callers at once, one after the other.
	connections = 4000
	callers     = 4
)

// networks prints what a pod's network costs: sandboxes with a network of their own beside sandboxes on the host's, turn by turn,
// on an empty node and on a full one; and how many connections a host port takes.
func (n *node) networks() error {
	if err := n.sandboxes("1 pod"); err != nil {
		return err
	}
	if err := n.bursts(); err != nil {
		return err
	}
	server, err := n.server()
	if err != nil {
		return err
	}
	defer server.close()
	if err := n.connect("1 host port"); err != nil {
		return err
	}
	start := time.Now()
	ids, err := n.stand()
	if err != nil {
		return errors.Join(err, n.removeAll(ids))
	}
	fmt.Printf("  %-34s %9.2f s, %d at once\n", fmt.Sprintf("%d pods with %d host ports", n.standing, n.standing*portsEach),
		time.Since(start).Seconds(), callers)
	if err := n.sandboxes(fmt.Sprintf("%d pods", n.standing)); err != nil {
		return err
	}
	if err := n.connect(fmt.Sprintf("%d host ports", n.standing*portsEach+1)); err != nil {
		return err
	}
	return n.removeAll(append(ids, server.id))
}

func (n *node) sandbox(name string, mode cri.NamespaceMode, ports ...*cri.PortMapping) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	options := &cri.NamespaceOption{Network: mode, Pid: cri.NamespaceMode_CONTAINER}
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
		LogDirectory: filepath.Join(n.scratch, "logs", name),
		PortMappings: ports,
		Linux:        &cri.LinuxPodSandboxConfig{SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: options}},
	}
	ran, err := n.runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: config, RuntimeHandler: n.handler})
	return ran.GetPodSandboxId(), err
}

func (n *node) stop(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	_, err := n.runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id})
	return err
}

func (n *node) remove(id string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	_, err := n.runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

// removeAll removes sandboxes, callers at once.
func (n *node) removeAll(ids []string) error {
	return each(len(ids), callers, func(i int) error { return n.remove(ids[i]) })
}

// each does count things, at most width at once.
func each(count, width int, work func(int) error) error {
	var wait sync.WaitGroup
	room := make(chan struct{}, width)
	failed := make([]error, count)
	for i := range count {
		room <- struct{}{}
		wait.Go(func() {
			failed[i] = work(i)
			<-room
		})
	}
	wait.Wait()
	return errors.Join(failed...)
}

var modes = []cri.NamespaceMode{cri.NamespaceMode_POD, cri.NamespaceMode_NODE}

// sandboxes measures one sandbox after the other.
func (n *node) sandboxes(among string) error {
	var up, down [2][]time.Duration
	for round := range n.rounds + 3 {
		for turn := range modes {
			// Turn by turn, so that neither is always the first.
			which := (turn + round) % 2
			time.Sleep(settle)
			start := time.Now()
			id, err := n.sandbox(fmt.Sprintf("network-%d-%d", round, which), modes[which])
			if err != nil {
				return err
			}
			took := time.Since(start)
			time.Sleep(settle)
			start = time.Now()
			if err := n.stop(id); err != nil {
				return err
			}
			// The first rounds warm caches.
			if round >= 3 {
				up[which] = append(up[which], took)
				down[which] = append(down[which], time.Since(start))
			}
			if err := n.remove(id); err != nil {
				return err
			}
		}
	}
	print := func(what string, times [2][]time.Duration) {
		own, host := quantiles(times[0]), quantiles(times[1])
		fmt.Printf("  %-34s %9.2f %9.2f %9.2f %9.2f %9.2f\n", what+", "+among, own[0], own[1], host[0], host[1], own[0]-host[0])
	}
	print("sandbox up", up)
	print("sandbox down", down)
	return nil
}

// bursts measures sandboxes that come and go at once, until the last one is there.
func (n *node) bursts() error {
	var up, down [2][]time.Duration
	for round := range burstRounds + 1 {
		for which, network := range modes {
			ids := make([]string, atOnce)
			time.Sleep(settle)
			start := time.Now()
			err := each(atOnce, atOnce, func(i int) (err error) {
				ids[i], err = n.sandbox(fmt.Sprintf("burst-%d-%d-%d", round, which, i), network)
				return err
			})
			if err != nil {
				return err
			}
			took := time.Since(start)
			time.Sleep(settle)
			start = time.Now()
			if err := each(atOnce, atOnce, func(i int) error { return n.stop(ids[i]) }); err != nil {
				return err
			}
			if round >= 1 {
				up[which] = append(up[which], took)
				down[which] = append(down[which], time.Since(start))
			}
			if err := n.removeAll(ids); err != nil {
				return err
			}
		}
	}
	for _, row := range []struct {
		what  string
		times [2][]time.Duration
	}{{"up", up}, {"down", down}} {
		own, host := quantiles(row.times[0]), quantiles(row.times[1])
		fmt.Printf("  %-34s %9.2f %9.2f %9.2f %9.2f %9.2f\n", fmt.Sprintf("%d sandboxes %s at once", atOnce, row.what),
			own[0], own[1], host[0], host[1], own[0]-host[0])
	}
	return nil
}

// stand sets up the pods that the node is full with.
func (n *node) stand() ([]string, error) {
	ids := make([]string, n.standing)
	err := each(n.standing, callers, func(i int) (err error) {
		var ports []*cri.PortMapping
		for port := range portsEach {
			ports = append(ports, mapping(firstPort+1+i*portsEach+port))
		}
		ids[i], err = n.sandbox(fmt.Sprintf("standing-%d", i), cri.NamespaceMode_POD, ports...)
		return err
	})
	var made []string
	for _, id := range ids {
		if id != "" {
			made = append(made, id)
		}
	}
	return made, err
}

func mapping(port int) *cri.PortMapping {
	return &cri.PortMapping{Protocol: cri.Protocol_TCP, ContainerPort: 8080, HostPort: int32(port)}
}

// answering is a pod with a host port, within whose network this process listens.
type answering struct {
	id       string
	listener net.Listener
}

func (a *answering) close() { a.listener.Close() }

func (n *node) server() (*answering, error) {
	id, err := n.sandbox("server", cri.NamespaceMode_POD, mapping(firstPort))
	if err != nil {
		return nil, err
	}
	listener, err := listenWithin(filepath.Join(n.state, "ns", id, "net"))
	if err != nil {
		return nil, err
	}
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			connection.Close()
		}
	}()
	return &answering{id: id, listener: listener}, nil
}

// listenWithin listens on port 8080 within a network namespace. A socket stays in the one that it was made in.
func listenWithin(path string) (net.Listener, error) {
	namespace, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer namespace.Close()
	type result struct {
		listener net.Listener
		err      error
	}
	made := make(chan result)
	go func() {
		// The thread ends with the goroutine, since it is never unlocked.
		runtime.LockOSThread()
		if err := unix.Setns(int(namespace.Fd()), unix.CLONE_NEWNET); err != nil {
			made <- result{err: fmt.Errorf("%s: %w", path, err)}
			return
		}
		listener, err := net.Listen("tcp4", ":8080")
		made <- result{listener, err}
	}()
	r := <-made
	return r.listener, r.err
}

// connect opens connections through the host port, one after the other in each caller.
func (n *node) connect(among string) error {
	start := time.Now()
	err := each(callers, callers, func(int) error {
		for range connections / callers {
			connection, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", firstPort), 10*time.Second)
			if err != nil {
				return err
			}
			// No connection lingers and holds its port.
			if err := connection.(*net.TCPConn).SetLinger(0); err != nil {
				return err
			}
			if err := connection.Close(); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("%s: %w", among, err)
	}
	fmt.Printf("  %-34s %9.0f per s\n", "TCP connections, "+among, connections/time.Since(start).Seconds())
	return nil
}
