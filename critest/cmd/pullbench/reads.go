package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// reads prints how long ListImages and ImageStatus take, idle and during five pulls at once.
func (b *bench) reads() error {
	fmt.Printf("reads while five images are pulled at once, one call each %d ms\n", b.listInterval)
	fmt.Printf("  %-38s %8s %8s %8s %8s %8s\n", "ms", "idle p50", "idle p99", "busy p50", "busy p99", "× p99")
	for _, who := range []*images{b.ours, b.peer} {
		if who == nil {
			continue
		}
		if err := b.readsOf(who); err != nil {
			return fmt.Errorf("%s: %w", who.name, err)
		}
	}
	return nil
}

// readsOf alternates between a runtime and the control, in one row each.
func (b *bench) readsOf(who *images) error {
	socket := filepath.Join(b.scratch, "control.sock")
	beside, stop, err := startControl(socket)
	if err != nil {
		return err
	}
	defer os.Remove(socket)
	defer stop()
	kept := fmt.Sprintf("%s/bench/part-%d:1", b.address, len(b.layers)-1)
	if err := who.pull(kept); err != nil {
		return err
	}
	asked := []*images{who, beside}
	quiet := make(chan struct{})
	time.AfterFunc(time.Duration(b.listSeconds)*time.Second, func() { close(quiet) })
	idle, err := b.watch(asked, kept, quiet)
	if err != nil {
		return err
	}
	busy := make([][]time.Duration, len(asked))
	for range b.rounds {
		done := make(chan struct{})
		failed := make([]error, 5)
		go func() {
			defer close(done)
			var group sync.WaitGroup
			for n := range failed {
				group.Add(1)
				go func() {
					defer group.Done()
					failed[n] = who.pull(fmt.Sprintf("%s/bench/part-%d:1", b.address, n))
				}()
			}
			group.Wait()
		}()
		some, err := b.watch(asked, kept, done)
		if err := errors.Join(append(failed, err)...); err != nil {
			return err
		}
		for n := range some {
			busy[n] = append(busy[n], some[n]...)
		}
		for n := range failed {
			if err := who.remove(fmt.Sprintf("%s/bench/part-%d:1", b.address, n)); err != nil {
				return err
			}
		}
	}
	at := func(of []time.Duration, q float64) float64 {
		slices.Sort(of)
		return float64(of[int(q*float64(len(of)-1))].Microseconds()) / 1000
	}
	for n, one := range asked {
		before, during := idle[n], busy[n]
		fmt.Printf("  %-38s %8.2f %8.2f %8.2f %8.2f %8.2f\n", one.name, at(before, 0.5), at(before, 0.99), at(during, 0.5),
			at(during, 0.99), at(during, 0.99)/at(before, 0.99))
	}
	return who.remove(kept)
}

// watch lists and asks until told to stop, and gives the time of each call, by whom it asked.
func (b *bench) watch(asked []*images, image string, stop <-chan struct{}) ([][]time.Duration, error) {
	all := make([][]time.Duration, len(asked))
	pause := time.NewTicker(time.Duration(b.listInterval) * time.Millisecond)
	defer pause.Stop()
	for {
		for n, who := range asked {
			for _, call := range []func(context.Context) error{
				func(ctx context.Context) error {
					_, err := who.service.ListImages(ctx, &cri.ListImagesRequest{})
					return err
				},
				func(ctx context.Context) error {
					_, err := who.service.ImageStatus(ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: image}})
					return err
				},
			} {
				select {
				case <-stop:
					return all, nil
				case <-pause.C:
				}
				took, err := timed(func() error { return call(context.Background()) })
				if err != nil {
					return nil, err
				}
				all[n] = append(all[n], took)
			}
		}
	}
}
