// Package image looks after the images of functions in containerd: it reads and checks them, pulls
// and imports them, names them, unpacks them, and keeps those that a release needs.
//
// What an image is called and which ones are kept is decided elsewhere. An image's identity is its
// layers (diff ids) and config; annotations live on the manifest and never change it.
//
// Everything happens in the containerd namespace of the client. Objects that belong to an image
// carry labels of the form dev.lfx.* only, and never labels from the image itself: containerd acts
// on some of them.
//
// Garbage collection: an image record keeps its manifest, the manifest's labels keep config and
// layers, and the config's label, which Unpack writes, keeps the snapshot. Lease keeps the same
// chain alive without a name. Whatever is created here is created under a lease.
package image
