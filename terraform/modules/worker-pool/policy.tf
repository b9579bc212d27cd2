# What a coordinator needs to drive the group, each call once. The module `coordinator` gives its role
# the same for all of its groups.
locals {
  group_arn = join(":", [
    "arn", data.aws_partition.current.partition, "autoscaling", data.aws_region.current.name,
    data.aws_caller_identity.current.account_id, "autoScalingGroup:*:autoScalingGroupName/${local.group}",
  ])
  role_arn = "arn:${data.aws_partition.current.partition}:iam::${data.aws_caller_identity.current.account_id}:role/${local.role}"
}

data "aws_iam_policy_document" "coordinator" {
  statement {
    sid = "See"
    # IAM knows no resources for these.
    actions   = ["autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeScalingActivities"]
    resources = ["*"]
  }

  statement {
    sid = "Drive"
    actions = [
      "autoscaling:SetDesiredCapacity",
      "autoscaling:SetInstanceProtection",
      "autoscaling:TerminateInstanceInAutoScalingGroup",
    ]
    resources = [local.group_arn]
  }
}
