package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"cricket/critest/internal/registry"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// images are a runtime's image service.
type images struct {
	name    string
	service cri.ImageServiceClient
}

func dial(name, socket string) (*images, error) {
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return &images{name, cri.NewImageServiceClient(connection)}, nil
}

func (i *images) pull(image string) error {
	_, err := i.service.PullImage(context.Background(), &cri.PullImageRequest{Image: &cri.ImageSpec{Image: image}})
	return err
}

func (i *images) remove(image string) error {
	_, err := i.service.RemoveImage(context.Background(), &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: image}})
	return err
}

// bench is one run.
type bench struct {
	*options
	layers  []*layer
	address string
	ours    *images
	peer    *images
	// careless waits for no disk.
	careless *images
}

func run(o *options) error {
	made, err := layers(o.out)
	if err != nil {
		return err
	}
	server, err := registry.Start(filepath.Join(o.scratch, "store"), filepath.Join(o.scratch, "registry"), o.port)
	if err != nil {
		return err
	}
	defer server.Stop()
	if err := push(server, "bench/whole", made); err != nil {
		return err
	}
	for n := range made {
		if err := push(server, fmt.Sprintf("bench/part-%d", n), made[n:n+1]); err != nil {
			return err
		}
	}
	b := &bench{options: o, layers: made, address: server.Address}
	if b.ours, err = dial("cricket", o.socket); err != nil {
		return err
	}
	if b.careless, err = dial("cricket, not durable", o.undurable); err != nil {
		return err
	}
	if o.peer != "" {
		if b.peer, err = dial("containerd", o.peer); err != nil {
			return err
		}
	}
	b.describe()
	if err := b.pulls(); err != nil {
		return err
	}
	return b.reads()
}

func (b *bench) describe() {
	var packed, plain, files int64
	for _, layer := range b.layers {
		packed, plain, files = packed+layer.Packed, plain+layer.Plain, files+layer.Files
	}
	fmt.Printf("pull of %d layers: %d MiB of tar, %d MiB of gzip, %d files; registry on 127.0.0.1\n",
		len(b.layers), plain>>20, packed>>20, files)
}

// unpack unpacks the layers with the plain tools, two at a time.
func (b *bench) unpack(top string) error {
	failed := make([]error, len(b.layers))
	slots := make(chan struct{}, 2)
	var group sync.WaitGroup
	for n, layer := range b.layers {
		dir := filepath.Join(top, strconv.Itoa(n))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		group.Add(1)
		slots <- struct{}{}
		go func() {
			defer group.Done()
			defer func() { <-slots }()
			script := fmt.Sprintf("set -o pipefail; curl -sf http://%s/v2/bench/whole/blobs/%s | gunzip | tar -x -p --numeric-owner -C %s",
				b.address, layer.Digest, dir)
			failed[n] = exec.Command("bash", "-c", script).Run()
		}()
	}
	group.Wait()
	return errors.Join(failed...)
}

// measured is what one pull took.
type measured struct{ wall, cpu, durable time.Duration }

func (b *bench) pulls() error {
	whole := b.address + "/bench/whole:1"
	var floor, ours, careless, peer []measured
	idle, err := memory(b.daemon, "VmRSS")
	if err != nil {
		return err
	}
	peak := 0
	var ratio, plain float64
	for round := range b.rounds {
		steps := []func() error{
			func() error {
				top := filepath.Join(b.scratch, "plain")
				before := children()
				took, err := timed(func() error { return b.unpack(top) })
				floor = append(floor, measured{wall: took, cpu: children() - before})
				if err == nil && round == 0 {
					plain, err = b.disk(top)
				}
				return errors.Join(err, os.RemoveAll(top))
			},
			func() error {
				if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", b.daemon), []byte("5"), 0); err != nil {
					return err
				}
				size, err := size(b.log)
				if err != nil {
					return err
				}
				before := spent(b.daemon)
				took, err := timed(func() error { return b.ours.pull(whole) })
				if err != nil {
					return err
				}
				cpu := spent(b.daemon) - before
				durable, err := durable(b.log, size)
				if err != nil {
					return err
				}
				ours = append(ours, measured{took, cpu, durable})
				high, err := memory(b.daemon, "VmHWM")
				if err != nil {
					return err
				}
				peak = max(peak, high)
				if round == 0 {
					if ratio, err = b.disk(b.state); err != nil {
						return err
					}
				}
				return b.ours.remove(whole)
			},
			func() error {
				took, err := timed(func() error { return b.careless.pull(whole) })
				careless = append(careless, measured{wall: took})
				return errors.Join(err, b.careless.remove(whole))
			},
		}
		if b.peer != nil {
			steps = append(steps, func() error {
				before := spent(b.peerPid)
				took, err := timed(func() error { return b.peer.pull(whole) })
				peer = append(peer, measured{wall: took, cpu: spent(b.peerPid) - before})
				return errors.Join(err, b.peer.remove(whole))
			})
		}
		// Each round begins with another one, and with nothing left to write.
		for n := range steps {
			syscall.Sync()
			time.Sleep(time.Second)
			if err := steps[(n+round)%len(steps)](); err != nil {
				return fmt.Errorf("round %d: %w", round, err)
			}
		}
	}
	fmt.Printf("  %-41s %8s %8s %8s %8s\n", fmt.Sprintf("%d rounds", b.rounds), "s p50", "s best", "CPU s", "× floor")
	row := func(name string, of []measured) {
		if len(of) == 0 {
			return
		}
		wall := func(m measured) time.Duration { return m.wall }
		spent := "–"
		if cpu := p50(of, func(m measured) time.Duration { return m.cpu }); cpu > 0 {
			spent = fmt.Sprintf("%.2f", cpu.Seconds())
		}
		fmt.Printf("  %-41s %8.2f %8.2f %8s %8.2f\n", name, p50(of, wall).Seconds(), least(of, wall).Seconds(), spent, ratios(of, floor))
	}
	row("curl | gunzip | tar x, two at once", floor)
	row("cricket, durable", ours)
	row("cricket, where nothing waits for the disk", careless)
	row("containerd", peer)
	if len(peer) > 0 {
		fmt.Printf("  cricket beside containerd: %.2f of its time, %.2f of its CPU time\n", ratios(ours, peer),
			p50(ours, func(m measured) time.Duration { return m.cpu }).Seconds()/
				p50(peer, func(m measured) time.Duration { return m.cpu }).Seconds())
	}
	commit := p50(ours, func(m measured) time.Duration { return m.durable })
	fmt.Printf("  durability: %.1f %% over the same where nothing waits for the disk; from the last byte to the answer %.0f ms\n",
		100*(ratios(ours, careless)-1), float64(commit.Microseconds())/1000)
	fmt.Printf("  memory of the daemon: %.1f MiB before, %.1f MiB at its highest\n", float64(idle)/1024, float64(peak)/1024)
	fmt.Printf("  disk: %.3f bytes for each byte of the uncompressed layers; tar's own files %.3f\n\n", ratio, plain)
	return nil
}

// disk is what a folder occupies, by the size of the layers' archives.
func (b *bench) disk(folder string) (float64, error) {
	text, err := exec.Command("du", "-s", "-B1", folder).Output()
	if err != nil {
		return 0, err
	}
	bytes, err := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
	var plain int64
	for _, layer := range b.layers {
		plain += layer.Plain
	}
	return float64(bytes) / float64(plain), err
}

func timed(work func() error) (time.Duration, error) {
	start := time.Now()
	err := work()
	return time.Since(start), err
}

func p50(of []measured, what func(measured) time.Duration) time.Duration {
	var all []time.Duration
	for _, one := range of {
		all = append(all, what(one))
	}
	slices.Sort(all)
	return all[len(all)/2]
}

func least(of []measured, what func(measured) time.Duration) time.Duration {
	return what(slices.MinFunc(of, func(a, b measured) int { return int(what(a) - what(b)) }))
}

// ratios is the median of what one took beside another in the same round.
func ratios(of, beside []measured) float64 {
	var all []float64
	for n := range of {
		all = append(all, of[n].wall.Seconds()/beside[n].wall.Seconds())
	}
	slices.Sort(all)
	return all[len(all)/2]
}

// children is the CPU time of all commands that were waited for.
func children() time.Duration {
	var usage syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_CHILDREN, &usage) // cannot fail
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}

// spent is the CPU time of a process, in ticks of 10 ms.
func spent(pid int) time.Duration {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	user, _ := strconv.Atoi(fields[11])
	system, _ := strconv.Atoi(fields[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// memory is a figure of /proc/<pid>/status, in KiB.
func memory(pid int, what string) (int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if rest, found := strings.CutPrefix(line, what+":"); found {
			return strconv.Atoi(strings.Fields(rest)[0])
		}
	}
	return 0, fmt.Errorf("process %d has no %s", pid, what)
}

func size(file string) (int64, error) {
	found, err := os.Stat(file)
	if err != nil {
		return 0, err
	}
	return found.Size(), nil
}

// durable is what the daemon's log says, after an offset, of the time that durability took.
func durable(log string, offset int64) (time.Duration, error) {
	file, err := os.Open(log)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	if _, err := file.Seek(offset, io.SeekStart); err != nil {
		return 0, err
	}
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		var line struct {
			DurableUs int64 `json:"durable_us"`
		}
		if json.Unmarshal(lines.Bytes(), &line) == nil && line.DurableUs > 0 {
			return time.Duration(line.DurableUs) * time.Microsecond, nil
		}
	}
	return 0, errors.Join(lines.Err(), errors.New("the log says nothing of durability: is it in JSON, at debug level?"))
}
