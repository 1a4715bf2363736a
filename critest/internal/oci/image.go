// Package oci writes images as OCI layouts: layers, configs, manifests and indexes, in OCI's and in Docker's media types.
package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"runtime"
	"time"

	"cricket/critest/internal/rootfs"

	"github.com/klauspost/compress/zstd"
)

// Compression of a layer.
type Compression int

const (
	Gzip Compression = iota
	Zstd
	None
)

// Format is the family of media types of an image.
type Format int

const (
	OCI Format = iota
	Docker
)

// Descriptor of a blob, as manifests and indexes spell it.
type Descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *Platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// Platform that an index's entry is for.
type Platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Variant      string `json:"variant,omitempty"`
}

// Layer is a packed layer.
type Layer struct {
	packed []byte
	diffID string
	form   Compression
}

// Run is the part of an image's config that says how to run it.
type Run struct {
	User         string              `json:"User,omitempty"`
	Env          []string            `json:"Env,omitempty"`
	Entrypoint   []string            `json:"Entrypoint,omitempty"`
	Cmd          []string            `json:"Cmd,omitempty"`
	WorkingDir   string              `json:"WorkingDir,omitempty"`
	ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
	Volumes      map[string]struct{} `json:"Volumes,omitempty"`
	StopSignal   string              `json:"StopSignal,omitempty"`
	Labels       map[string]string   `json:"Labels,omitempty"`
}

// Image is what a catalogue entry asks for.
type Image struct {
	// Names are full references with a tag; one manifest serves them all.
	Names  []string
	Layers []*Layer
	Run    Run
	Format Format
	// Index puts the manifest behind an index (a manifest list in Docker's format) that offers another platform first.
	Index bool
}

// Blob is a finished piece with its media type.
type Blob struct {
	MediaType string
	Digest    string
	Body      []byte
}

// Packed is an image in pieces, ready to be stored or pushed.
type Packed struct {
	Names []string
	// Blobs are layers and configs.
	Blobs []Blob
	// Manifests in the order in which a registry takes them; the last one is what the names point to.
	Manifests []Blob
}

// Digest of content, in the form that descriptors use.
func Digest(content []byte) string {
	sum := sha256.Sum256(content)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Pack makes a layer of a tree.
func Pack(tree *rootfs.Tree, form Compression) (*Layer, error) {
	var plain bytes.Buffer
	if err := tree.Write(tar.NewWriter(&plain)); err != nil {
		return nil, err
	}
	layer := &Layer{packed: plain.Bytes(), diffID: Digest(plain.Bytes()), form: form}
	var packed bytes.Buffer
	switch form {
	case Gzip:
		writer, err := gzip.NewWriterLevel(&packed, gzip.BestSpeed)
		if err != nil {
			return nil, err
		}
		if _, err := writer.Write(plain.Bytes()); err != nil {
			return nil, err
		}
		if err := writer.Close(); err != nil {
			return nil, err
		}
		layer.packed = packed.Bytes()
	case Zstd:
		// One goroutine: the frames, and so the digest, must not depend on the number of processors.
		writer, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		layer.packed = writer.EncodeAll(plain.Bytes(), nil)
	case None:
	}
	return layer, nil
}

func (l *Layer) mediaType(format Format) (string, error) {
	switch {
	case format == OCI && l.form == Gzip:
		return "application/vnd.oci.image.layer.v1.tar+gzip", nil
	case format == OCI && l.form == Zstd:
		return "application/vnd.oci.image.layer.v1.tar+zstd", nil
	case format == OCI:
		return "application/vnd.oci.image.layer.v1.tar", nil
	case l.form == Gzip:
		return "application/vnd.docker.image.rootfs.diff.tar.gzip", nil
	case l.form == None:
		return "application/vnd.docker.image.rootfs.diff.tar", nil
	}
	return "", fmt.Errorf("docker's media types know no zstd layer")
}

var (
	manifestType = map[Format]string{OCI: "application/vnd.oci.image.manifest.v1+json",
		Docker: "application/vnd.docker.distribution.manifest.v2+json"}
	configType = map[Format]string{OCI: "application/vnd.oci.image.config.v1+json",
		Docker: "application/vnd.docker.container.image.v1+json"}
	indexType = map[Format]string{OCI: "application/vnd.oci.image.index.v1+json",
		Docker: "application/vnd.docker.distribution.manifest.list.v2+json"}
)

// Pack makes the blobs and manifests of the image.
func (i *Image) Pack() (*Packed, error) {
	packed := &Packed{Names: i.Names}
	native, err := i.manifest(packed, runtime.GOARCH)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", i.Names[0], err)
	}
	if !i.Index {
		packed.Manifests = append(packed.Manifests, native)
		return packed, nil
	}
	foreign := "s390x"
	other, err := i.manifest(packed, foreign)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", i.Names[0], err)
	}
	// The foreign platform comes first: who takes the first entry takes the wrong one.
	index, err := json.Marshal(struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Manifests     []Descriptor `json:"manifests"`
	}{2, indexType[i.Format], []Descriptor{
		{MediaType: other.MediaType, Digest: other.Digest, Size: len(other.Body), Platform: &Platform{foreign, "linux", ""}},
		{MediaType: native.MediaType, Digest: native.Digest, Size: len(native.Body),
			Platform: &Platform{runtime.GOARCH, "linux", ""}},
	}})
	if err != nil {
		return nil, err
	}
	packed.Manifests = append(packed.Manifests, other, native, Blob{indexType[i.Format], Digest(index), index})
	return packed, nil
}

func (i *Image) manifest(packed *Packed, architecture string) (Blob, error) {
	type history struct {
		Created   time.Time `json:"created"`
		CreatedBy string    `json:"created_by"`
	}
	var diffIDs []string
	var steps []history
	var layers []Descriptor
	for n, layer := range i.Layers {
		mediaType, err := layer.mediaType(i.Format)
		if err != nil {
			return Blob{}, err
		}
		blob := Blob{mediaType, Digest(layer.packed), layer.packed}
		packed.Blobs = append(packed.Blobs, blob)
		diffIDs = append(diffIDs, layer.diffID)
		// The image's own name in its history keeps its config, and so its id, apart from every other image's.
		steps = append(steps, history{rootfs.Stamp, fmt.Sprintf("testimages: layer %d of %s", n, i.Names[0])})
		layers = append(layers, Descriptor{MediaType: mediaType, Digest: blob.Digest, Size: len(layer.packed)})
	}
	config, err := json.Marshal(map[string]any{
		"created": rootfs.Stamp, "architecture": architecture, "os": "linux", "config": i.Run,
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs}, "history": steps,
	})
	if err != nil {
		return Blob{}, err
	}
	configBlob := Blob{configType[i.Format], Digest(config), config}
	packed.Blobs = append(packed.Blobs, configBlob)
	body, err := json.Marshal(struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Config        Descriptor   `json:"config"`
		Layers        []Descriptor `json:"layers"`
	}{2, manifestType[i.Format],
		Descriptor{MediaType: configBlob.MediaType, Digest: configBlob.Digest, Size: len(config)}, layers})
	if err != nil {
		return Blob{}, err
	}
	return Blob{manifestType[i.Format], Digest(body), body}, nil
}
