// Package registry runs Debian's docker-registry on a loopback port and pushes images into it.
package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"cricket/critest/internal/oci"
)

// Hosts are the registries that the test images pretend to come from. Each has a folder of its own in the local registry.
var Hosts = []string{"registry.k8s.io", "gcr.io", "k8s.gcr.io", "public.ecr.aws"}

// Server is a running docker-registry.
type Server struct {
	// Address is host and port.
	Address string
	process *exec.Cmd
	done    chan error
}

const config = `version: 0.1
log:
  level: warn
  accesslog:
    disabled: true
storage:
  filesystem:
    rootdirectory: %s
  delete:
    enabled: false
http:
  addr: %s
`

// Start runs a docker-registry on storage and waits until it answers. Port 0 takes a free one. The process dies with us.
func Start(storage, scratch string, port int) (*Server, error) {
	if port == 0 {
		probe, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		port = probe.Addr().(*net.TCPAddr).Port
		if err := probe.Close(); err != nil {
			return nil, err
		}
	}
	address := fmt.Sprintf("127.0.0.1:%d", port)
	if err := os.MkdirAll(scratch, 0o755); err != nil {
		return nil, err
	}
	file := filepath.Join(scratch, "registry.yml")
	if err := os.WriteFile(file, fmt.Appendf(nil, config, storage, address), 0o644); err != nil {
		return nil, err
	}
	log, err := os.Create(filepath.Join(scratch, "registry.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	process := exec.Command("docker-registry", "serve", file)
	process.Stdout, process.Stderr = log, log
	process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := process.Start(); err != nil {
		return nil, fmt.Errorf("docker-registry (Debian package docker-registry): %w", err)
	}
	server := &Server{Address: address, process: process, done: make(chan error, 1)}
	go func() { server.done <- process.Wait() }()
	if err := server.ready(20 * time.Second); err != nil {
		text, _ := os.ReadFile(log.Name())
		return nil, errors.Join(err, server.Stop(), fmt.Errorf("its log: %s", text))
	}
	return server, nil
}

func (s *Server) ready(within time.Duration) error {
	deadline := time.Now().Add(within)
	for {
		answer, err := http.Get("http://" + s.Address + "/v2/")
		if err == nil {
			answer.Body.Close()
			if answer.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("status %s", answer.Status)
		}
		select {
		case gone := <-s.done:
			s.done <- gone
			return fmt.Errorf("docker-registry on %s ended: %w", s.Address, errors.Join(gone, err))
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("docker-registry on %s: %w", s.Address, err)
		}
	}
}

// Wait returns when the registry ends.
func (s *Server) Wait() error {
	gone := <-s.done
	s.done <- gone
	return gone
}

// Stop ends the registry that Start began, and no other.
func (s *Server) Stop() error {
	if err := s.process.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	_ = s.Wait() // ended by our signal
	return nil
}

// Push stores an image under each of its names; the upstream host becomes the first folder of the repository's path.
func (s *Server) Push(image *oci.Packed) error {
	for _, name := range image.Names {
		repository, tag := oci.SplitTag(name)
		for _, blob := range image.Blobs {
			if err := s.pushBlob(repository, blob); err != nil {
				return fmt.Errorf("%s: blob %s: %w", name, blob.Digest, err)
			}
		}
		for n, manifest := range image.Manifests {
			reference := manifest.Digest
			if n == len(image.Manifests)-1 {
				reference = tag
			}
			target := fmt.Sprintf("http://%s/v2/%s/manifests/%s", s.Address, repository, reference)
			if _, err := send(http.MethodPut, target, manifest.MediaType, manifest.Body); err != nil {
				return fmt.Errorf("%s: manifest %s: %w", name, manifest.Digest, err)
			}
		}
	}
	return nil
}

func (s *Server) pushBlob(repository string, blob oci.Blob) error {
	base := fmt.Sprintf("http://%s/v2/%s/blobs/", s.Address, repository)
	if answer, err := http.Head(base + blob.Digest); err == nil {
		answer.Body.Close()
		if answer.StatusCode == http.StatusOK {
			return nil
		}
	}
	where, err := send(http.MethodPost, base+"uploads/", "", nil)
	if err != nil {
		return err
	}
	joint := "?"
	if strings.Contains(where, "?") {
		joint = "&"
	}
	_, err = send(http.MethodPut, where+joint+"digest="+blob.Digest, "application/octet-stream", blob.Body)
	return err
}

func send(method, target, mediaType string, body []byte) (location string, err error) {
	request, err := http.NewRequest(method, target, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	if mediaType != "" {
		request.Header.Set("Content-Type", mediaType)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10))
	if err != nil {
		return "", err
	}
	if answer.StatusCode/100 != 2 {
		return "", fmt.Errorf("%s %s: %s: %s", method, target, answer.Status, text)
	}
	return answer.Header.Get("Location"), nil
}
