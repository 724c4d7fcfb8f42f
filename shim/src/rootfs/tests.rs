//! What needs no privileges: reading mounts, keys, and images in the cache.

use super::build::{build_arguments, common_parent};
use super::layers::split_lowerdir;
use super::*;

fn mount(kind: &str, source: &str, options: &[&str]) -> Mount {
    Mount {
        type_: kind.to_owned(),
        source: source.to_owned(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
        ..Default::default()
    }
}

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("hull-rootfs-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn paths(names: &[&str]) -> Vec<PathBuf> {
    names.iter().map(PathBuf::from).collect()
}

#[test]
fn overlays_give_their_layers() {
    let dir = scratch("overlay");
    let upper = dir.join("upper");
    std::fs::create_dir(&upper).unwrap();
    let upper_option = format!("upperdir={}", upper.display());
    let options = ["index=off", "workdir=/w", &upper_option, "lowerdir=/b:/a"];
    let read = || Layers::of(&[mount("overlay", "overlay", &options)], Path::new("rootfs")).unwrap();
    assert_eq!(read(), Layers { dirs: paths(&["/b", "/a"]), mutable: false, userxattr: false });
    std::fs::write(upper.join("file"), "").unwrap();
    let upper = upper.display().to_string();
    assert_eq!(read(), Layers { dirs: paths(&[&upper, "/b", "/a"]), mutable: true, userxattr: false });
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn binds_are_mutable_unless_read_only() {
    let read = |options: &[&str]| Layers::of(&[mount("bind", "/s", options)], Path::new("rootfs")).unwrap();
    assert!(read(&["rbind", "rw"]).mutable && !read(&["rbind", "ro"]).mutable);
    let plain = Layers::of(&[], Path::new("/my/rootfs")).unwrap();
    assert_eq!(plain, Layers { dirs: paths(&["/my/rootfs"]), mutable: true, userxattr: false });
}

#[test]
fn what_is_not_understood_is_named() {
    let refused = |mounts: &[Mount]| Layers::of(mounts, Path::new("rootfs")).unwrap_err().to_string();
    assert!(refused(&[]).contains("no root file system"));
    assert!(refused(&[mount("ext4", "/dev/x", &[])]).contains("ext4"));
    assert!(refused(&[mount("overlay", "overlay", &[])]).contains("lowerdir"));
    let two = [mount("bind", "/a", &[]), mount("bind", "/b", &[])];
    assert!(refused(&two).contains("2 mounts"));
}

#[test]
fn lower_directories_are_split_and_escaped() {
    assert_eq!(split_lowerdir(r"/a\:b:/c"), paths(&["/a:b", "/c"]));
    assert_eq!(split_lowerdir(""), paths(&[]));
    let layers = |names: &[&str]| Layers { dirs: paths(names), mutable: false, userxattr: true };
    let words = build_arguments(&layers(&["/r/s/2/fs", "/r/s/1:x/fs"]), Path::new("/m")).unwrap();
    assert_eq!(words, ["/r/s", "/m", r"lowerdir=2/fs:1\:x/fs,userxattr"]);
    assert_eq!(build_arguments(&layers(&["/one"]), Path::new("/m")).unwrap(), ["/one"]);
    let many: Vec<_> = (0..2000).map(|n| format!("/r/{n}/fs")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    assert!(matches!(
        build_arguments(&layers(&many), Path::new("/m")),
        Err(RootfsError::TooManyLayers { .. })
    ));
}

#[test]
fn common_parents() {
    assert_eq!(common_parent(&paths(&["/a/b/c", "/a/d"])), Path::new("/a"));
    assert_eq!(common_parent(&paths(&["/a", "/a/b"])), Path::new("/"));
    assert_eq!(common_parent(&paths(&["/x/1/fs", "/y/2/fs"])), Path::new("/"));
}

#[test]
fn keys_name_contents_and_order() {
    let dir = scratch("key");
    let (one, two) = (dir.join("1"), dir.join("2"));
    std::fs::create_dir(&one).unwrap();
    std::fs::create_dir(&two).unwrap();
    let of = |dirs: &[&PathBuf]| {
        Layers { dirs: dirs.iter().map(|dir| (*dir).clone()).collect(), mutable: false, userxattr: false }
            .key()
    };
    let first = of(&[&one, &two]).unwrap();
    assert_eq!(first, of(&[&one, &two]).unwrap());
    assert_ne!(first, of(&[&two, &one]).unwrap());
    std::thread::sleep(Duration::from_millis(20));
    std::fs::write(two.join("new"), "").unwrap();
    assert_ne!(first, of(&[&one, &two]).unwrap());
    let error = of(&[&dir.join("missing")]).unwrap_err();
    assert!(error.to_string().contains("missing"), "{error}");
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn a_file_that_is_no_image_is_refused_and_removed() {
    let dir = scratch("magic");
    let path = dir.join("x.erofs");
    assert!(open_cached(&path).unwrap().is_none());
    std::fs::write(&path, vec![0; 8192]).unwrap();
    assert!(matches!(open_cached(&path), Err(RootfsError::NoImage { .. })));
    assert!(!path.exists());
    let mut image = vec![0; 8192];
    image[1024..1028].copy_from_slice(&EROFS_MAGIC);
    std::fs::write(&path, &image).unwrap();
    assert_eq!(open_cached(&path).unwrap().unwrap().length_bytes, 8192);
    // Cut short by a crash.
    std::fs::write(&path, &image[..5000]).unwrap();
    assert!(matches!(open_cached(&path), Err(RootfsError::NoImage { .. })));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[tokio::test]
async fn one_builder_at_a_time() {
    let dir = scratch("lock");
    let held = lock(&dir, Duration::from_secs(1)).await.unwrap();
    let second = lock(&dir, Duration::from_millis(50)).await;
    assert!(matches!(second, Err(RootfsError::Late(_))));
    drop(held);
    lock(&dir, Duration::from_secs(1)).await.unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
}
