package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"cricket/critest/internal/oci"
	"cricket/critest/internal/registry"
)

const (
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar+gzip"
)

// push stores an image of layers under a repository, with the tag 1.
func push(server *registry.Server, repository string, of []*layer) error {
	diffs := []string{}
	described := []oci.Descriptor{}
	for _, layer := range of {
		if err := upload(server, repository, layer.Digest, layer.Packed, func() (io.ReadCloser, error) { return os.Open(layer.File) }); err != nil {
			return err
		}
		diffs = append(diffs, layer.DiffID)
		described = append(described, oci.Descriptor{MediaType: layerType, Digest: layer.Digest, Size: int(layer.Packed)})
	}
	config, err := json.Marshal(map[string]any{
		"created": "2020-01-01T00:00:00Z", "architecture": runtime.GOARCH, "os": "linux",
		// The repository's name keeps the image's id apart from every other.
		"config": map[string]any{"Labels": map[string]string{"repository": repository}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffs},
	})
	if err != nil {
		return err
	}
	digest := oci.Digest(config)
	body := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(config)), nil }
	if err := upload(server, repository, digest, int64(len(config)), body); err != nil {
		return err
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType,
		"config": oci.Descriptor{MediaType: configType, Digest: digest, Size: len(config)}, "layers": described,
	})
	if err != nil {
		return err
	}
	target := fmt.Sprintf("http://%s/v2/%s/manifests/1", server.Address, repository)
	_, err = send(http.MethodPut, target, manifestType, int64(len(manifest)), bytes.NewReader(manifest))
	return err
}

func upload(server *registry.Server, repository, digest string, size int64, open func() (io.ReadCloser, error)) error {
	base := fmt.Sprintf("http://%s/v2/%s/blobs/", server.Address, repository)
	where, err := send(http.MethodPost, base+"uploads/", "", 0, nil)
	if err != nil {
		return err
	}
	joint := "?"
	if strings.Contains(where, "?") {
		joint = "&"
	}
	body, err := open()
	if err != nil {
		return err
	}
	defer body.Close()
	_, err = send(http.MethodPut, where+joint+"digest="+digest, "application/octet-stream", size, body)
	return err
}

func send(method, target, mediaType string, size int64, body io.Reader) (location string, err error) {
	request, err := http.NewRequest(method, target, body)
	if err != nil {
		return "", err
	}
	request.ContentLength = size
	if mediaType != "" {
		request.Header.Set("Content-Type", mediaType)
	}
	client := http.Client{Timeout: 5 * time.Minute}
	answer, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	if answer.StatusCode/100 != 2 {
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 4<<10))
		return "", fmt.Errorf("%s %s: %s: %s", method, target, answer.Status, text)
	}
	return answer.Header.Get("Location"), nil
}
