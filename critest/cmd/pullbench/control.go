package main

import (
	"context"
	"net"
	"os"
	"os/exec"
	"time"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// control is an image service that does nothing but answer: how long its calls take is what this machine, with what
// else runs on it, and this client make of a call.
type control struct {
	cri.UnimplementedImageServiceServer
}

func (control) ListImages(context.Context, *cri.ListImagesRequest) (*cri.ListImagesResponse, error) {
	return &cri.ListImagesResponse{Images: []*cri.Image{theImage}}, nil
}

func (control) ImageStatus(context.Context, *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	return &cri.ImageStatusResponse{Image: theImage}, nil
}

var theImage = &cri.Image{
	Id:          "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
	RepoTags:    []string{"127.0.0.1:5010/bench/part-5:1"},
	RepoDigests: []string{"127.0.0.1:5010/bench/part-5@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"},
	Size:        1 << 30,
}

// serveControl serves until it is killed.
func serveControl(socket string) error {
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer()
	cri.RegisterImageServiceServer(server, control{})
	return server.Serve(listener)
}

// startControl starts it as a process of its own; the function ends it.
func startControl(socket string) (*images, func(), error) {
	command := exec.Command("/proc/self/exe", "control", "-socket", socket)
	command.Stderr = os.Stderr
	if err := command.Start(); err != nil {
		return nil, nil, err
	}
	stop := func() {
		_ = command.Process.Kill() // gone already, when that fails
		_ = command.Wait()         // "killed"
	}
	who, err := dial("beside it, a server that only answers", socket)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, err = who.service.ListImages(ctx, &cri.ListImagesRequest{}, grpc.WaitForReady(true))
	}
	if err != nil {
		stop()
		return nil, nil, err
	}
	return who, stop, nil
}
