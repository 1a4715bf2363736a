package oci

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
)

// WriteLayout stores images as one OCI layout folder; every name becomes an entry of its index.
func WriteLayout(dir string, images ...*Packed) error {
	store := filepath.Join(dir, "blobs", "sha256")
	if err := os.MkdirAll(store, 0o755); err != nil {
		return err
	}
	var entries []Descriptor
	for _, image := range images {
		for _, blob := range append(append([]Blob{}, image.Blobs...), image.Manifests...) {
			file := filepath.Join(store, strings.TrimPrefix(blob.Digest, "sha256:"))
			if err := os.WriteFile(file, blob.Body, 0o644); err != nil {
				return err
			}
		}
		top := image.Manifests[len(image.Manifests)-1]
		for _, name := range image.Names {
			_, tag := SplitTag(name)
			entries = append(entries, Descriptor{MediaType: top.MediaType, Digest: top.Digest, Size: len(top.Body),
				// Both customs: a tag beside the full name, as containerd writes it, is understood by every importer.
				Annotations: map[string]string{
					"org.opencontainers.image.ref.name": tag,
					"io.containerd.image.name":          name,
				}})
		}
	}
	index, err := json.MarshalIndent(struct {
		SchemaVersion int          `json:"schemaVersion"`
		MediaType     string       `json:"mediaType"`
		Manifests     []Descriptor `json:"manifests"`
	}{2, indexType[OCI], entries}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), append(index, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`+"\n"), 0o644)
}

// SplitTag cuts a full reference into its repository and its tag.
func SplitTag(name string) (repository, tag string) {
	at := strings.LastIndex(name, ":")
	if at < 0 || strings.Contains(name[at:], "/") {
		return name, "latest"
	}
	return name[:at], name[at+1:]
}
