# image.pkr.hcl: a golden image with tattle, by Packer, and without the builder's own logins
#
# In the checkout where dist/tattle was built:
#   tattle recipe image.pkr.hcl >image.pkr.hcl
#   packer init image.pkr.hcl && packer build -var source_ami=ami-0123456789abcdef0 image.pkr.hcl
# For a template that you have, take its provisioners: the last one has to be the last of all.
#
# Not tested: Packer itself. The tests run the scripts.

packer {
  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = ">= 1.3.0"
    }
  }
}

variable "source_ami" {
  type = string
}

variable "ssh_username" {
  type    = string
  default = "ec2-user"
}

source "amazon-ebs" "tattle" {
  ami_name      = "tattle-{{timestamp}}"
  source_ami    = var.source_ami
  instance_type = "t3.micro"
  ssh_username  = var.ssh_username
  imds_support  = "v2.0"
}

build {
  sources = ["source.amazon-ebs.tattle"]

  provisioner "file" {
    source      = "dist/tattle"
    destination = "/tmp/tattle"
  }

  provisioner "shell" {
    execute_command = "sudo sh -eu {{ .Path }}"
    inline = [
      "install -m 755 /tmp/tattle /usr/local/bin/tattle.new",
      "mv /usr/local/bin/tattle.new /usr/local/bin/tattle",
      "rm /tmp/tattle",
      "sed -i --follow-symlinks 's/ *user_readenv=1//' /etc/pam.d/sshd",
      "/usr/local/bin/tattle recipe pam | sh",
    ]
  }

  # Deliver what waits, if the builder has a role that may. What still waits, or comes from now on, such as the end of
  # Packer's own session, is not for the image: it goes to a tmpfs.
  provisioner "shell" {
    execute_command = "sudo sh -eu {{ .Path }}"
    inline = [
      "/usr/local/bin/tattle flush || true",
      "rm -rf /var/spool/tattle /run/tattle-spool",
      "mkdir -m 700 /var/spool/tattle",
      "mount -t tmpfs -o mode=700 tmpfs /var/spool/tattle",
    ]
  }
}
